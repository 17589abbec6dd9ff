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
local stage = unreported_stage(job, begin)
local verdict, new = apply_begin(job, place, cell, begin, stage)
if not new then
  return { verdict, pack(cell) }
end
local later = read_stages(job, verdict == "begun" and begin.later)
local packed = put(job, place, old, new)
if stage and verdict == "begun" then
  finish_stage(job, stage, later, begin.event_id)
end
unblock(job, later, place.tag, begin.event_id)
local decided = finish(job, place, new)
if verdict == "begun" and #decided == 0 then
  return packed
end
return { verdict, packed, unpack(decided) }
