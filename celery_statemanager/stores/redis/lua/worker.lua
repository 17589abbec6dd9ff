-- Writes a worker's record. With "lock", writes only if no other holder has a valid lease. Returns 1 if written, else 0.
--
-- KEYS[1]  workers (hash: worker -> packed {body, renewed at, lease until}; microseconds since the epoch)
-- ARGV     1 worker, 2 body, 3 lease in microseconds, 4 "lock" or ""

local time = redis.call("TIME")
local now = time[1] * 1000000 + time[2]
if ARGV[4] == "lock" then
  local packed = redis.call("HGET", KEYS[1], ARGV[1])
  local record = packed and cmsgpack.unpack(packed)
  if record and record[1] ~= ARGV[2] and record[3] > now then
    return 0
  end
end
redis.call("HSET", KEYS[1], ARGV[1], cmsgpack.pack({ ARGV[2], now, now + ARGV[3] }))
return 1
