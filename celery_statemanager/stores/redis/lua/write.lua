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
local place = places[1]

local function is_fenced_off(cell)
  local held = request.held
  return (request.attempt and request.attempt ~= cell.attempt)
    or (held and (request.holder ~= cell.owner or compare(held[1], held[2], cell) ~= 0))
    or (request.when == "open" and not cell.open)
    or (request.when == "idle" and (cell.open or is_final(cell)))
end

-- A cancelled job takes only what ends a cell that was begun, and everything of its callbacks.
local function is_refused_as_cancelled(cell)
  if not job.cancelled_at or place.row < 0 or request.closes then
    return false
  end
  return is_waiting(cell) or not (request.status < 0 or request.status == FINISHED)
end

local function last_word(cell)
  if job.cancelled_at and request.when == "idle" then
    return CANCELLED, job.reason
  elseif request.yields and cell.open and cell.status < 0 then
    return cell.status, cell.message
  elseif request.yields and not request.message then
    return request.status, cell.message
  end
  return request.status, request.message
end

local function set_payload(new)
  if not request.keeps_payload then
    new.payload = ARGV[3] ~= "" and ARGV[3] or nil
  end
  if request.progress or not request.keeps_payload then
    new.progress, new.share, new.full, new.done = request.progress, request.share, request.full, nil
  end
  if request.keeps_payload and new.status == FINISHED and new.progress then
    new.share, new.done = new.full, true
  end
end

local function written(cell)
  local new = copy(cell)
  new.status, new.message = last_word(cell)
  new.timestamp, new.version, new.event_id = job.now, cell.version + 1, request.event_id
  new.blocked_by, new.open = nil, cell.open and not request.closes
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
  set_payload(new)
  return new
end

-- Gives the later stages of the row that nobody has begun the status of this one, which failed for good.
local function block(failed)
  local message = failed.message and failed.message ~= "" and failed.message or failed.status
  for i = 2, #places do
    local old = read(places[i])
    if not old or is_waiting(old) then
      local cell = old or new_cell(request.schema)
      local new = ended(job, cell, failed.status, request.not_run .. message, request.event_id)
      new.blocked_by = place.tag
      put(job, places[i], old, new)
    end
  end
end

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
  begun_cell.version = cell.version -- one step, one version: the write's
  cell, request.attempt = begun_cell, begun_cell.attempt
end
if is_fenced_off(cell) then
  return { "superseded", cell.attempt }
elseif is_refused_as_cancelled(cell) then
  return { "cancelled", job.reason or false }
end
local new = written(cell)
put(job, place, old, new)
if request.begin then
  unblock(job, places, request.event_id)
end
if request.cascades and is_final(new) and new.status < 0 then
  block(new)
end
return { "written", pack(new), unpack(finish(job, place, new)) }
