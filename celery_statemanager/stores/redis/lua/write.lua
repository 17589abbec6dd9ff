-- Writes one cell and all that follows from it. One step, one slot.
--
-- KEYS, ARGV[1], ARGV[2]  as common.lua; the request: requests.WRITE
-- ARGV[3]                 payload without its progress, JSON; empty for none
-- Gives {"gone"}, {"superseded", attempt}, {"cancelled", reason}, {"refused", verdict},
-- {"same", cell}, {"written", cell, names of the latches that fell ...}, or the cell alone: no latch fell.

local job = open_job(ARGV[1])
if not job then
  return { "gone" }
end
local write = cmsgpack.unpack(ARGV[2])
local place = place_of(1, write.tag, write.row, write.rank, write.counts)

local function is_fenced_off(cell)
  local held = write.held
  return (write.attempt and write.attempt ~= cell[ATTEMPT])
    or (held and (write.holder ~= cell[OWNER] or compare(held[1], held[2], cell) ~= 0))
    or (write.when == "open" and not cell[OPEN])
    or (write.when == "idle" and (cell[OPEN] or is_final(cell)))
end

-- A cancelled job takes only what ends a cell that was begun, and everything of its callbacks.
local function is_refused_as_cancelled(cell)
  if not job.cancelled_at or place.of_callback or write.ends_attempt then
    return false
  end
  return is_waiting(cell) or not (write.status < 0 or write.status == FINISHED)
end

local function last_word(cell)
  if job.cancelled_at and write.when == "idle" then
    return CANCELLED, job.reason
  elseif write.keep_app_status and cell[OPEN] and cell[STATUS] < 0 then
    return cell[STATUS], cell[MESSAGE]
  elseif write.keep_app_status and not write.message then
    return write.status, cell[MESSAGE]
  end
  return write.status, write.message
end

local function set_payload(new)
  if not write.keep_payload then
    new[PAYLOAD] = ARGV[3] ~= "" and ARGV[3] or nil
  end
  if write.progress or not write.keep_payload then
    new[PROGRESS], new[SHARE], new[FULL], new[DONE] = write.progress, write.share, write.full, nil
  end
  if write.keep_payload and new[STATUS] == FINISHED and new[PROGRESS] then
    new[SHARE], new[DONE] = new[FULL], true
  end
end

local function written(cell)
  local new = copy(cell)
  new[STATUS], new[MESSAGE] = last_word(cell)
  new[TIMESTAMP], new[VERSION], new[EVENT_ID] = job.now, cell[VERSION] + 1, write.event_id
  new[BLOCKED_BY], new[OPEN] = nil, cell[OPEN] and not write.ends_attempt
  if not new[OPEN] then
    new[OWNER] = nil
  end
  if is_final(new) then
    new[KEPT] = nil
  end
  if write.next_delivery then
    new[REPLACEMENTS], new[RETRIES] = write.next_delivery[1], write.next_delivery[2]
  end
  if write.counts_as_loss then
    new[LOSSES] = (cell[LOSSES] or 0) + 1
  end
  set_payload(new)
  return new
end

-- Gives the later stages of the row that nobody has begun the status of this one, which failed for good.
local function block(failed)
  local message = failed[MESSAGE] and failed[MESSAGE] ~= "" and failed[MESSAGE] or failed[STATUS]
  for i, cell in ipairs(write.later or {}) do
    local later = place_of(i + 1, unpack(cell))
    local old = read(later)
    if not old or is_waiting(old) then
      local cell = old or new_cell(write.schema)
      local new = ended(job, cell, failed[STATUS], write.not_run .. message, write.event_id)
      new[BLOCKED_BY] = place.tag
      put(job, later, old, new)
    end
  end
end

local old = read(place)
if old and old[EVENT_ID] == write.event_id then
  return { "same", pack(old) }
end
local cell = old or new_cell(write.schema)
if write.begin then
  local verdict, begun_cell = begun(job, place, cell, write.begin, write.ends_attempt)
  if verdict == "cancelled" then
    return { "cancelled", job.reason or false }
  elseif verdict ~= "begun" then
    return { "refused", verdict }
  end
  begun_cell[VERSION] = cell[VERSION] -- one step, one version: the write's
  cell, write.attempt = begun_cell, begun_cell[ATTEMPT]
end
if is_fenced_off(cell) then
  return { "superseded", cell[ATTEMPT] }
elseif is_refused_as_cancelled(cell) then
  return { "cancelled", job.reason or false }
end
local new = written(cell)
local kept = put(job, place, old, new)
if write.begin then
  unblock(job, write.later, place.tag, write.event_id)
end
if write.block_later_stages and is_final(new) and new[STATUS] < 0 then
  block(new)
end
local decided = finish(job, place, new)
return #decided == 0 and kept or { "written", kept, unpack(decided) }
