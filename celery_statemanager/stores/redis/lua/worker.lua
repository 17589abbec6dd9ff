-- Writes a worker's record, whole.
--
-- KEYS[1]  workers (hash: worker -> packed {body, renewed, alive until}; microseconds since the epoch)
-- ARGV     1 worker, 2 body, 3 lease in microseconds

local time = redis.call("TIME")
local now = time[1] * 1000000 + time[2]
return redis.call("HSET", KEYS[1], ARGV[1], cmsgpack.pack({ ARGV[2], now, now + ARGV[3] }))
