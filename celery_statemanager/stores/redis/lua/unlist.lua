-- Removes a job from a list, unless it was added or touched recently.
--
-- KEYS[1]  recently active jobs or tombstones (see touch.lua), or drafts (see draft.lua)
-- ARGV[1]  entry
-- ARGV[2]  the minimum age of the entry's last touch, or of the end of its lease, microseconds

local time = redis.call("TIME")
local touched = redis.call("ZSCORE", KEYS[1], ARGV[1])
if touched and tonumber(touched) < time[1] * 1000000 + time[2] - ARGV[2] then
  return redis.call("ZREM", KEYS[1], ARGV[1])
end
return 0
