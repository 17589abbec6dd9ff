-- Removes a job from the registry and optionally adds it to the purge queue.
--
-- KEYS     1 jobs, 2 active, 3 recently active, 4 tombstones (see touch.lua), 5 purge queue (set of entries)
-- ARGV[1]  entry
-- ARGV[2]  "purge", or "forget" if nothing of the job was stored
-- ARGV[3]  the minimum age of its registration, microseconds; empty for any

local registered = redis.call("ZSCORE", KEYS[1], ARGV[1])
if ARGV[3] ~= "" and registered then
  local time = redis.call("TIME")
  if tonumber(registered) > time[1] * 1000000 + time[2] - ARGV[3] then
    return 0
  end
end
-- Removals come first: a full server accepts a command that needs memory only after another write of the same script.
for i = 1, 4 do
  redis.call("ZREM", KEYS[i], ARGV[1])
end
if ARGV[2] == "purge" then
  redis.call("SADD", KEYS[5], ARGV[1])
end
return 1
