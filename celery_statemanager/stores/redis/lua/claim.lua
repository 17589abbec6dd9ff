-- Claims rows to publish. One step, one slot.
--
-- KEYS     1 head, 2 returned (see returned.lua)
-- ARGV[1]  incarnation
-- ARGV[2]  request: publisher, limit, lease in microseconds, dead and ended publishers, drop_unclaimed, begun and waiting:
--          the ranges of rows that are returned (see claiming.lua); a packed map
-- Returns {"gone"}, {"none"} if the job has nothing to claim, or {"claimed", ranges to publish, the number of bounds of
-- those that were claimed before, number of rows that were never claimed}.

local job = open_job(ARGV[1])
if not job then
  return { "gone" }
end
local outbox = read_outbox()
local rows, again = claim(job, outbox, cmsgpack.unpack(ARGV[2]))
if not rows then
  return { "none" }
end
return { "claimed", rows, again, outbox.num_tasks - outbox.claimed }
