-- Writes one cell and all that follows from it. One step, one slot.
--
-- KEYS, ARGV[1], ARGV[2]  as common.lua; the request: places, status, event_id, message, keeps_payload,
--                         progress (JSON), share and full (of the progress as it is and once done, in 1e-8 cells),
--                         attempt, holder (worker) and held {replacements, retries}, begin (as in begin.lua),
--                         when ("open", "idle"), closes, yields, cascades, not_run (what blocked stages are told),
--                         losing, next_delivery {replacements, retries}, schema
-- ARGV[3]                 payload without its progress, JSON; empty for none
-- Gives {"gone"}, {"superseded", attempt}, {"cancelled", reason}, {"refused", verdict},
-- {"same", cell}, or {"written", cell, names of the latches that fell ...}.

local job = open_job(ARGV[1])
if not job then
  return { "gone" }
end
local request = cjson.decode(ARGV[2])
local places = places_of(request)
local place, status, message = places[1], request.status, request.message
local old = read(place)
if old and old.event_id == request.event_id then
  return { "same", pack(old) }
end
local cell = old or new_cell(request.schema)

if request.begin then
  local verdict, begun_cell = begun(job, place, cell, request.begin, request.closes)
  if verdict == "cancelled" then
    return { "cancelled", job.reason or false }
  elseif verdict ~= "begun" then
    return { "refused", verdict }
  end
  begun_cell.version = cell.version
  cell, request.attempt = begun_cell, begun_cell.attempt
end

local held = request.held
if (request.attempt and request.attempt ~= cell.attempt)
  or (held and (request.holder ~= cell.owner or compare(held[1], held[2], cell) ~= 0))
  or (request.when == "open" and not cell.open)
  or (request.when == "idle" and (cell.open or is_final(cell)))
then
  return { "superseded", cell.attempt }
end
if job.cancelled_at and place.row >= 0 and not request.closes then
  if is_waiting(cell) or not (status < 0 or status == FINISHED) then
    return { "cancelled", job.reason or false }
  end
end

if job.cancelled_at and request.when == "idle" then
  status, message = CANCELLED, job.reason
elseif request.yields and cell.open and cell.status < 0 then
  status, message = cell.status, cell.message
elseif request.yields and not message then
  message = cell.message
end

local new = copy(cell)
new.status, new.message, new.timestamp, new.version = status, message, job.now, cell.version + 1
new.event_id, new.blocked_by = request.event_id, nil
new.open = cell.open and not request.closes
if not new.open then
  new.owner = nil
end
if is_final(new) then
  new.kept = nil
end
if request.next_delivery then
  new.replacements, new.retries = request.next_delivery[1], request.next_delivery[2]
end
if request.losing then
  new.losses = (cell.losses or 0) + 1
end
if not request.keeps_payload then
  new.payload = ARGV[3] ~= "" and ARGV[3] or nil
end
if request.progress or not request.keeps_payload then
  new.progress, new.share, new.full, new.done = request.progress, request.share, request.full, nil
end
if request.keeps_payload and status == FINISHED and new.progress then
  new.share, new.done = new.full, true
end

put(job, place, old, new)
if request.begin then
  unblock(job, places, request.event_id)
end
if request.cascades and is_final(new) and new.status < 0 then
  local why = request.not_run .. (new.message and new.message ~= "" and new.message or new.status)
  for i = 2, #places do
    local later = read(places[i])
    if not later or is_waiting(later) then
      local blocked = ended(job, later or new_cell(request.schema), new.status, why, request.event_id)
      blocked.blocked_by = place.tag
      put(job, places[i], later, blocked)
    end
  end
end
return { "written", pack(new), unpack(finish(job, place, new)) }
