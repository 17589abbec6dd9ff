-- Replaces the changeable fields of a job if its revision is unchanged, and decides its latches again.
--
-- KEYS     1 head, 2 and 3 not used, 4 stream
-- ARGV[1]  incarnation
-- ARGV[2]  request: revision, schema, cancelled_at (microseconds), reason, window, paused (see returned.lua),
--          earlier_failures, max_failed, earlier_failed_rows, deadline, reset_generation (see common.lua), success,
--          failure, settled (time of the decision, microseconds); a packed map, absent fields are cleared
-- ARGV[3]  control: the fields that only clients read, JSON
-- Returns {"gone"}, {"moved"}, or {"updated", names of the decided latches ...}.

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
local names = {
  "cancelled_at", "reason", "window", "paused", "earlier_failures", "reset_generation", "max_failed",
  "earlier_failed_rows", "deadline", "success", "failure", "settled",
}
for _, name in ipairs(names) do
  if request[name] then
    redis.call("HSET", KEYS[1], name, request[name])
  else
    redis.call("HDEL", KEYS[1], name)
  end
end
job.cancelled_at, job.earlier_failures = request.cancelled_at, request.earlier_failures
job.max_failed, job.earlier_failed_rows = request.max_failed, request.earlier_failed_rows
job.reset_generation, job.settled = request.reset_generation, request.settled
publish(job, "j", "")
return { "updated", unpack(decide(job)) }
