-- Changes the incarnation of a job: sets it in the head and renames every other key accordingly.
--
-- KEYS     1 head, then the present and the new name of each key of the incarnation; the tallies come first
-- ARGV[1]  incarnation
-- ARGV[2]  the new incarnation
-- ARGV[3]  the number of tags that the caller has read
-- Returns {"gone"}, {"tags"} if the job has another number of tags, or {"adopted"}.

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
