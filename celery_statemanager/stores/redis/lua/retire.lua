-- Takes a job out of the registry and, unless nothing of it was ever kept, marks its leftovers for purging.
--
-- KEYS     1 jobs, 2 active, 3 live, 4 tombs (see touch.lua), 5 trash (set of entries)
-- ARGV[1]  entry
-- ARGV[2]  "trash", or "forget" if there are no leftovers
-- ARGV[3]  how long ago it must have been registered, microseconds; empty for any time

local registered = redis.call("ZSCORE", KEYS[1], ARGV[1])
if ARGV[3] ~= "" and registered then
  local time = redis.call("TIME")
  if tonumber(registered) > time[1] * 1000000 + time[2] - ARGV[3] then
    return 0
  end
end
-- Removing comes first: a full server takes what grows only after it.
for i = 1, 4 do
  redis.call("ZREM", KEYS[i], ARGV[1])
end
if ARGV[2] == "trash" then
  redis.call("SADD", KEYS[5], ARGV[1])
end
return 1
