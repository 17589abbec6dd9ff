-- Reads a job and some of its cells in one step.
--
-- KEYS     1 head, 2 tallies, then for each cell the hash that holds it
-- ARGV[1]  incarnation
-- ARGV[2]  the number of tags that the caller has read; -1 to skip the check
-- ARGV[3]  for each cell its field in the hash, and its tag; "" for callbacks ...
-- Returns {"gone"}, {"tags", tag ...} if the job has another number of tags, or {"read", values of HEAD, packed cells}.

local head = redis.call("HMGET", KEYS[1], HEAD)
if head[1] ~= ARGV[1] then
  return { "gone" }
elseif ARGV[2] ~= "-1" and redis.call("HLEN", KEYS[2]) ~= tonumber(ARGV[2]) then
  return { "tags", unpack(redis.call("HKEYS", KEYS[2])) }
end
check_size(KEYS[2], head[#head - 1])
local cells = {}
for i = 3, #KEYS do
  local field, tag = ARGV[2 * i - 3], ARGV[2 * i - 2]
  cells[i - 2] = redis.call("HGET", KEYS[i], field)
  if not cells[i - 2] and redis.call("EXISTS", KEYS[i]) == 0 and redis.call("HEXISTS", KEYS[2], tag) == 1 then
    raise_evicted(KEYS[i])
  end
end
return { "read", head, cells }
