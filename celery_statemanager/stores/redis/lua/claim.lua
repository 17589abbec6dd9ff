-- Claims rows to publish. One step, one slot.
--
-- KEYS     1 head, 2 returned (see returned.lua)
-- ARGV[1]  incarnation
-- ARGV[2]  request: publisher, limit, lease in microseconds, dead and ended publishers, begun and waiting: the ranges
--          of rows that are returned (see claiming.lua); a packed map
-- Returns {"gone"}, {"none"} if the job has nothing to claim, or {"claimed", ranges to publish, numbers of rows that were
-- claimed before, that are claimed now, and of all rows}.

local job = open_job(ARGV[1])
if not job then
  return { "gone" }
end
local outbox = read_outbox()
local before = outbox.claimed
local rows = claim(job, outbox, cmsgpack.unpack(ARGV[2]))
if not rows then
  return { "none" }
end
return { "claimed", rows, before, outbox.claimed, outbox.num_tasks }
