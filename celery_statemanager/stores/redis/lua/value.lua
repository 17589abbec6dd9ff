-- Reads what a row keeps of its newest finished stage.
--
-- KEYS     1 head, 2 values (see returned.lua)
-- ARGV     1 incarnation, 2 row
-- Returns {"gone"}, or {"read", value}; the value is nil if there is none.

local head = redis.call("HMGET", KEYS[1], "incarnation", "values")
if head[1] ~= ARGV[1] then
  return { "gone" }
end
local value = redis.call("HGET", KEYS[2], ARGV[2])
if not value then
  check_size(KEYS[2], head[2])
end
return { "read", value }
