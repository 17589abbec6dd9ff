-- Replaces what may change of a job if nobody else did since it was read, and decides its latches anew.
--
-- KEYS     1 head, 2 and 3 not used, 4 stream
-- ARGV[1]  incarnation
-- ARGV[2]  request: revision, schema, cancelled_at (microseconds), reason, success, failure, settled (when decided,
--          microseconds); a packed map, what is absent is cleared
-- ARGV[3]  control: the parts that only clients read, JSON
-- Gives {"gone"}, {"moved"}, or {"updated", names of the latches that fell ...}.

local job = open_job(ARGV[1])
if not job then
  return { "gone" }
end
local request = cmsgpack.unpack(ARGV[2])
if request.revision ~= tonumber(redis.call("HGET", KEYS[1], "revision")) then
  return { "moved" }
end
redis.call(
  "HSET", KEYS[1], "control", ARGV[3], "schema", request.schema,
  "clock_at", job.now, "revision", request.revision + 1, "sequence", job.sequence + 1
)
for _, name in ipairs({ "cancelled_at", "reason", "success", "failure", "settled" }) do
  if request[name] then
    redis.call("HSET", KEYS[1], name, request[name])
  else
    redis.call("HDEL", KEYS[1], name)
  end
end
job.cancelled_at = request.cancelled_at
publish(job, "j", "")
return { "updated", unpack(decide(job)) }
