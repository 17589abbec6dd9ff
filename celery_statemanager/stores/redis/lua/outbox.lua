-- Reads which rows of a job are claimed.
--
-- KEYS[1]  head (see claiming.lua)
-- ARGV[1]  incarnation
-- Returns {"gone"}, or {"read", number of claimed rows, publisher, its packed claim, ...}.

local head = redis.call("HMGET", KEYS[1], "incarnation", "claimed")
if head[1] ~= ARGV[1] then
  return { "gone" }
end
local reply = { "read", head[2] or 0 }
for _, field in ipairs(redis.call("HKEYS", KEYS[1])) do
  local publisher = string.match(field, "^claim:(.*)$")
  if publisher then
    reply[#reply + 1], reply[#reply + 2] = publisher, redis.call("HGET", KEYS[1], field)
  end
end
return reply
