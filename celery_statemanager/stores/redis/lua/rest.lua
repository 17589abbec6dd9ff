-- Takes a job out of a list that it was found not to belong in, unless it was put there a short while ago.
--
-- KEYS[1]  live or tombs (see touch.lua)
-- ARGV[1]  entry
-- ARGV[2]  how long ago that must be, microseconds

local time = redis.call("TIME")
local touched = redis.call("ZSCORE", KEYS[1], ARGV[1])
if touched and tonumber(touched) < time[1] * 1000000 + time[2] - ARGV[2] then
  return redis.call("ZREM", KEYS[1], ARGV[1])
end
return 0
