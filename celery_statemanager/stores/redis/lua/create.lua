-- Stores a new job.
--
-- KEYS     1 head, 2 stream (see common.lua), 3 draft and 4 blocks (hash: first row of a block -> its messages)
-- ARGV[1]  incarnation
-- ARGV[2]  "messages" if the job owns messages, which are those of its draft; otherwise ""
-- ARGV[3]  names and values of the head's other fields, alternately ...
-- Returns {"exists"}, {"expired"} if the draft was deleted, or {"created", time of creation (text, microseconds)}, also
-- when repeated.

local stored = redis.call("HMGET", KEYS[1], "incarnation", "created_at")
if stored[1] == ARGV[1] then
  return { "created", stored[2] }
elseif stored[1] then
  return { "exists" }
elseif ARGV[2] == "messages" and redis.call("HEXISTS", KEYS[3], "0") == 0 then
  -- A submitter that did not notice the deletion may have added later blocks.
  return { "expired" }
end
local time = redis.call("TIME")
local now = string.format("%.0f", time[1] * 1000000 + time[2])
-- The stream comes first: a server without streams refuses it before anything is stored.
redis.call("XADD", KEYS[2], "MAXLEN", "~", EVENTS, "1-0", "j", "")
if ARGV[2] == "messages" then
  redis.call("RENAME", KEYS[3], KEYS[4])
  redis.call("PERSIST", KEYS[4])
end
redis.call(
  "HSET", KEYS[1], "incarnation", ARGV[1], "created_at", now, "active_at", now, "revision", 1, "sequence", 1,
  "total", cmsgpack.pack({ 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }), unpack(ARGV, 3)
)
return { "created", now }
