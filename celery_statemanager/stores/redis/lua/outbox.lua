-- Reads which rows of a job are claimed, and which were returned.
--
-- KEYS     1 head, 2 returned (see returned.lua and claiming.lua)
-- ARGV[1]  incarnation
-- Returns {"gone"}, or {"read", number of claimed rows, number of rows, bitmap, publisher, its packed claim, ...}.

if redis.call("HGET", KEYS[1], "incarnation") ~= ARGV[1] then
  return { "gone" }
end
local outbox = read_outbox()
local reply = { "read", outbox.claimed, outbox.num_tasks, redis.call("GET", KEYS[2]) or "" }
for _, field in ipairs(redis.call("HKEYS", KEYS[1])) do
  local publisher = string.match(field, "^claim:(.*)$")
  if publisher then
    reply[#reply + 1], reply[#reply + 2] = publisher, redis.call("HGET", KEYS[1], field)
  end
end
return reply
