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
local request = cmsgpack.unpack(ARGV[2])
local place = place_of(request, 1)

local function is_fenced_off(cell)
  local held = request.held
  return (request.attempt and request.attempt ~= cell[ATTEMPT])
    or (held and (request.holder ~= cell[OWNER] or compare(held[1], held[2], cell) ~= 0))
    or (request.when == "open" and not cell[OPEN])
    or (request.when == "idle" and (cell[OPEN] or is_final(cell)))
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
  elseif request.yields and cell[OPEN] and cell[STATUS] < 0 then
    return cell[STATUS], cell[MESSAGE]
  elseif request.yields and not request.message then
    return request.status, cell[MESSAGE]
  end
  return request.status, request.message
end

local function set_payload(new)
  if not request.keeps_payload then
    new[PAYLOAD] = ARGV[3] ~= "" and ARGV[3] or nil
  end
  if request.progress or not request.keeps_payload then
    new[PROGRESS], new[SHARE], new[FULL], new[DONE] = request.progress, request.share, request.full, nil
  end
  if request.keeps_payload and new[STATUS] == FINISHED and new[PROGRESS] then
    new[SHARE], new[DONE] = new[FULL], true
  end
end

local function written(cell)
  local new = copy(cell)
  new[STATUS], new[MESSAGE] = last_word(cell)
  new[TIMESTAMP], new[VERSION], new[EVENT_ID] = job.now, cell[VERSION] + 1, request.event_id
  new[BLOCKED_BY], new[OPEN] = nil, cell[OPEN] and not request.closes
  if not new[OPEN] then
    new[OWNER] = nil
  end
  if is_final(new) then
    new[KEPT] = nil
  end
  if request.next_delivery then
    new[REPLACEMENTS], new[RETRIES] = request.next_delivery[1], request.next_delivery[2]
  end
  if request.losing then
    new[LOSSES] = (cell[LOSSES] or 0) + 1
  end
  set_payload(new)
  return new
end

-- Gives the later stages of the row that nobody has begun the status of this one, which failed for good.
local function block(failed)
  local message = failed[MESSAGE] and failed[MESSAGE] ~= "" and failed[MESSAGE] or failed[STATUS]
  for i = 2, #request.places do
    local later = place_of(request, i)
    local old = read(later)
    if not old or is_waiting(old) then
      local cell = old or new_cell(request.schema)
      local new = ended(job, cell, failed[STATUS], request.not_run .. message, request.event_id)
      new[BLOCKED_BY] = place.tag
      put(job, later, old, new)
    end
  end
end

local old = read(place)
if old and old[EVENT_ID] == request.event_id then
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
  begun_cell[VERSION] = cell[VERSION] -- one step, one version: the write's
  cell, request.attempt = begun_cell, begun_cell[ATTEMPT]
end
if is_fenced_off(cell) then
  return { "superseded", cell[ATTEMPT] }
elseif is_refused_as_cancelled(cell) then
  return { "cancelled", job.reason or false }
end
local new = written(cell)
local kept = put(job, place, old, new)
if request.begin then
  unblock(job, request, place.tag, request.event_id)
end
if request.cascades and is_final(new) and new[STATUS] < 0 then
  block(new)
end
return { "written", kept, unpack(finish(job, place, new)) }
