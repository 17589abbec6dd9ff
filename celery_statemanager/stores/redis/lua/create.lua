-- Keeps a new job.
--
-- KEYS     1 head, 2 stream (see common.lua)
-- ARGV[1]  incarnation
-- ARGV[2]  names and values of the head's other fields, one after the other ...
-- Gives {"exists"}, or {"created", when (text, microseconds)}; sending it again gives the same.

local held = redis.call("HMGET", KEYS[1], "incarnation", "created_at")
if held[1] == ARGV[1] then
  return { "created", held[2] }
elseif held[1] then
  return { "exists" }
end
local time = redis.call("TIME")
local now = string.format("%.0f", time[1] * 1000000 + time[2])
-- Streams first: a server too old for them refuses before anything is kept.
redis.call("XADD", KEYS[2], "MAXLEN", "~", EVENTS, "1-0", "j", "")
redis.call(
  "HSET", KEYS[1], "incarnation", ARGV[1], "created_at", now, "active_at", now, "revision", 1, "sequence", 1,
  "total", cmsgpack.pack({ 0, 0, 0, 0, 0, 0, 0, 0 }), unpack(ARGV, 2)
)
return { "created", now }
