-- Reads fields of the hash with the values of rows (see row_values.lua).
--
-- KEYS     1 head, 2 values
-- ARGV[1]  incarnation
-- ARGV[2]  the number of bytes after which it stops
-- ARGV[3]  fields ...
-- Returns {"gone"}, or {"read", contents} with the content of each field, nil if it is missing.

local head = redis.call("HMGET", KEYS[1], "incarnation", "values")
if head[1] ~= ARGV[1] then
  return { "gone" }
end
check_size(KEYS[2], head[2])
local contents, size = {}, 0
for i = 3, #ARGV do
  local content = redis.call("HGET", KEYS[2], ARGV[i])
  contents[i - 2], size = content, size + (content and #content or 0)
  if size >= tonumber(ARGV[2]) then
    break
  end
end
return { "read", contents }
