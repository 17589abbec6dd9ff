-- Deletes a job for all readers and writers, in constant time at any size. Its other keys are purged later.
--
-- KEYS     1 head, 2 stream
-- ARGV[1]  incarnation
-- ARGV[2]  revision and ARGV[3] last activity (microseconds) that must be unchanged; both empty to skip the check
-- Returns {"gone"}, {"moved"} or {"detached"}.

local head = redis.call("HMGET", KEYS[1], "incarnation", "revision", "active_at", "sequence")
if head[1] ~= ARGV[1] then
  return { "gone" }
elseif ARGV[2] ~= "" and (ARGV[2] ~= head[2] or ARGV[3] ~= head[3]) then
  return { "moved" }
end
redis.call("DEL", KEYS[1])
-- The entry distinguishes a deleted job from one whose head was evicted.
redis.call("XADD", KEYS[2], string.format("%.0f-0", head[4] + 1), "j", "deleted")
return { "detached" }
