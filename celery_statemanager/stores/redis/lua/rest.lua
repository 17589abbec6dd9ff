-- Takes a quiet job out of the live ones, unless it was touched a short while ago.
--
-- KEYS[1]  live (see touch.lua)
-- ARGV[1]  entry
-- ARGV[2]  how long ago its last touch must be, microseconds

local time = redis.call("TIME")
local touched = redis.call("ZSCORE", KEYS[1], ARGV[1])
if touched and tonumber(touched) < time[1] * 1000000 + time[2] - ARGV[2] then
  return redis.call("ZREM", KEYS[1], ARGV[1])
end
return 0
