-- Records in the registry that a job is active, or about to be created.
--
-- KEYS     1 jobs (zset: entry -> time of registration), 2 active (zset: entry -> last touch),
--          3 recently active (zset: entry -> last touch; removed when the job is found quiet),
--          4 tombstones (zset: entry -> the last time at which its record was about to be tombstoned); microseconds
-- ARGV[1]  entry
-- ARGV[2]  "new": register it. "cell": a cell is about to change. "job": its record is about to change. "tombstone":
--          its record is about to be tombstoned. All but "new" leave an unregistered job unregistered
-- Returns 1, or 0 if the job is not registered.

local time = redis.call("TIME")
local now = time[1] * 1000000 + time[2]
if ARGV[2] == "new" then
  redis.call("ZADD", KEYS[1], now, ARGV[1])
elseif not redis.call("ZSCORE", KEYS[1], ARGV[1]) then
  return 0
end
if ARGV[2] == "tombstone" then
  redis.call("ZADD", KEYS[4], now, ARGV[1])
elseif ARGV[2] ~= "job" then
  redis.call("ZADD", KEYS[2], now, ARGV[1])
end
redis.call("ZADD", KEYS[3], now, ARGV[1])
return 1
