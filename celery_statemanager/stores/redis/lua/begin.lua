-- Takes the next attempt of a cell, or says why not. One step, one slot.
--
-- KEYS, ARGV[1], ARGV[2]  as common.lua; the request: places, event_id, delivery {replacements, retries}, owner,
--                         kept, message, supersedes (attempt), takes_over, schema
-- Gives {"gone"}, or {verdict, cell, names of the latches that fell ...}.

local job = open_job(ARGV[1])
if not job then
  return { "gone" }
end
local request = cjson.decode(ARGV[2])
local places = places_of(request)
local old = read(places[1])
if old and old.event_id == request.event_id and old.open then
  return { "begun", pack(old) }
end
local cell = old or new_cell(request.schema)
local verdict, new = begun(job, places[1], cell, request)
if not new then
  return { verdict, pack(cell) }
end
put(job, places[1], old, new)
if verdict == "begun" then
  unblock(job, places, request.event_id)
end
return { verdict, pack(new), unpack(finish(job, places[1], new)) }
