-- Notes in the registry that a job is at work, or (new) that it is about to be created.
--
-- KEYS     1 jobs (zset: entry -> when registered), 2 active (zset: entry -> last touched),
--          3 live (zset: entry -> last touched; touched since the job was last found quiet),
--          4 tombs (zset: entry -> when its record was last about to be marked deleted); microseconds
-- ARGV[1]  entry
-- ARGV[2]  "new": register it; "cell": a cell is about to change; "job": its record is; "tomb": its record is, and is
--          marked deleted then. What is not registered stays so

local time = redis.call("TIME")
local now = time[1] * 1000000 + time[2]
if ARGV[2] == "new" then
  redis.call("ZADD", KEYS[1], now, ARGV[1])
elseif not redis.call("ZSCORE", KEYS[1], ARGV[1]) then
  return 0
end
if ARGV[2] == "tomb" then
  redis.call("ZADD", KEYS[4], now, ARGV[1])
elseif ARGV[2] ~= "job" then
  redis.call("ZADD", KEYS[2], now, ARGV[1])
end
redis.call("ZADD", KEYS[3], now, ARGV[1])
return 1
