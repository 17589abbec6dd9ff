-- Takes the next attempt of a cell, or returns the reason for the refusal. One step, one slot.
--
-- KEYS, ARGV[1], ARGV[2]  as in common.lua; the request is requests.BEGIN
-- Returns {"gone"}, {verdict, cell, names of the decided latches ...}, or the cell alone if it was begun and no latch
-- was decided.

local job = open_job(ARGV[1])
if not job then
  return { "gone" }
end
local begin = cmsgpack.unpack(ARGV[2])
local place = place_of(1, begin.tag, begin.row, begin.rank, begin.counts, begin.is_last)
local old = read(job, place)
if old and old[EVENT_ID] == begin.event_id and old[OPEN] then
  return { "begun", pack(old) }
end
local cell = old or new_cell(begin.schema)
local is_over = job.cancelled_at or job.settled or place.of_callback
if job.deadline and job.deadline <= job.now and not is_over then
  return { "expired", pack(cell) }
end
local verdict, new = apply_begin(job, place, cell, begin)
if not new then
  return { verdict, pack(cell) }
end
local later = read_stages(job, verdict == "begun" and begin.later)
local outbox = verdict == "paused" and read_outbox()
local packed = put(job, place, old, new)
if outbox then
  give_back(outbox, place, not begin.is_later)
end
unblock(job, later, place.tag, begin.event_id)
local decided = finish(job, place, new)
if verdict == "begun" and #decided == 0 then
  return packed
end
return { verdict, packed, unpack(decided) }
