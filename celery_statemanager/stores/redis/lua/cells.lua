-- Reads a job and some of its cells as of one moment.
--
-- KEYS     1 head, 2 tallies, then for each cell the hash that holds it
-- ARGV[1]  incarnation
-- ARGV[2]  how many tags the caller believes the job has seen; -1 if it need not know
-- ARGV[3]  the fields of the cells in their hashes ...
-- Gives {"gone"}, {"tags", tag ...}, or {"read", values of HEAD, packed cells}.

local head = redis.call("HMGET", KEYS[1], HEAD)
if head[1] ~= ARGV[1] then
  return { "gone" }
elseif ARGV[2] ~= "-1" and redis.call("HLEN", KEYS[2]) ~= tonumber(ARGV[2]) then
  return { "tags", unpack(redis.call("HKEYS", KEYS[2])) }
end
local cells = {}
for i = 3, #KEYS do
  cells[i - 2] = redis.call("HGET", KEYS[i], ARGV[i])
end
return { "read", head, cells }
