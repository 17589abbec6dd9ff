-- Gives a job another incarnation: its head names it, and every other key is renamed after it.
--
-- KEYS     1 head, then for each key of the incarnation its name and the one it gets; the tallies come first
-- ARGV[1]  incarnation
-- ARGV[2]  the other incarnation
-- ARGV[3]  how many tags the caller believes the job has seen
-- Gives {"gone"}, {"tags"} if it has seen others, or {"adopted"}.

local head = redis.call("HMGET", KEYS[1], "incarnation", "revision")
if head[1] ~= ARGV[1] then
  return { "gone" }
elseif redis.call("HLEN", KEYS[2]) ~= tonumber(ARGV[3]) then
  return { "tags" }
end
redis.call("HSET", KEYS[1], "incarnation", ARGV[2], "schema", 0, "revision", head[2] + 1)
for i = 2, #KEYS, 2 do
  if redis.call("EXISTS", KEYS[i]) == 1 then
    redis.call("RENAME", KEYS[i], KEYS[i + 1])
  end
end
return { "adopted" }
