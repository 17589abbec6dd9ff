-- Writes one cell, blocks or unblocks the later stages of its row, decides the job's latches, and claims the rows that
-- are due. One step, one slot.
--
-- KEYS, ARGV[1], ARGV[2]  as in common.lua; the request is requests.WRITE
-- ARGV[3]                 payload without its progress, JSON; empty for none
-- ARGV[4]                 what the row keeps of the stage; empty to remove it, missing to leave it
-- ARGV[5]                 the row of this value
-- Returns {"gone"}, {"superseded", attempt}, {"cancelled", reason}, {"refused", verdict}, {"same", cell},
-- {"written", cell, names of the decided latches ...}, {"claimed", cell, ranges (see claiming.lua), the number of
-- bounds of those that were claimed before, names ...}, or the cell alone if the write has neither claimed rows nor
-- decided a latch. A repeated write returns {"claimed before", cell, ranges} if the first one claimed rows.

local job = open_job(ARGV[1])
if not job then
  return { "gone" }
end
local write = cmsgpack.unpack(ARGV[2])
local place = place_of(1, write.tag, write.row, write.rank, write.counts, write.is_last)

-- Implements transitions._cancels.
local cancels = write.when == "idle" and write.status == CANCELLED

-- Implements transitions._ends_late.
local function ends_late(cell)
  return write.ends_attempt and awaits_end(cell)
    and (write.status == FINISHED or not (write.presumed_dead or cell[STATUS] == FINISHED))
end

-- Implements transitions._may_be_marked.
local function may_be_marked(cell)
  return cell[OWNER] and (cell[VERSION] == write.if_version or is_stalled(cell))
end

local function is_superseded(cell)
  local delivery = write.if_delivery
  return (write.attempt and write.attempt ~= cell[ATTEMPT])
    or (delivery and (write.if_owner ~= cell[OWNER] or compare(delivery, cell) ~= 0))
    or (write.when == "open" and not cell[OPEN] and not ends_late(cell))
    or (write.when == "idle" and (cell[OPEN] or is_final(cell)))
    or (write.delivery and compare(write.delivery, cell) < 0)
    or (cancels and not job.cancelled_at)
    or (write.stalled_since and not may_be_marked(cell))
end

-- A cancelled job accepts writes that end a begun cell or cancel a waiting one, and all writes of its callbacks.
local function is_refused_as_cancelled(cell)
  if not job.cancelled_at or place.of_callback or write.ends_attempt or cancels or write.stalled_since then
    return false
  end
  return is_waiting(cell) or not (write.status < 0 or write.status == FINISHED or write.due_again)
end

local function status_and_message(cell)
  if job.cancelled_at and not place.of_callback and (write.when == "idle" or write.due_again) then
    return CANCELLED, job.reason
  elseif write.due_again and is_waiting(cell) then
    return cell[STATUS], write.message
  elseif write.keep_app_status and cell[OPEN] and cell[STATUS] < 0 then
    return cell[STATUS], cell[MESSAGE]
  elseif write.keep_app_status and not write.message then
    return write.status, not (awaits_end(cell) and cell[STATUS] ~= FINISHED) and cell[MESSAGE] or nil
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

-- Implements transitions._stalled: returns nil if the mark adds nothing.
local function stalled(cell)
  if is_stalled(cell) and (cell[STANDS_IN] or not write.stands_in) then
    return nil
  end
  local new = copy(cell)
  new[TIMESTAMP], new[VERSION], new[EVENT_ID] = job.now, cell[VERSION] + 1, write.event_id
  new[STALLED_SINCE], new[STANDS_IN] = is_stalled(cell) and cell[STALLED_SINCE] or write.stalled_since, write.stands_in
  return new
end

local function apply_write(cell)
  if write.stalled_since then
    return stalled(cell)
  end
  local new = copy(cell)
  new[STATUS], new[MESSAGE] = status_and_message(cell)
  new[TIMESTAMP], new[VERSION], new[EVENT_ID] = job.now, cell[VERSION] + 1, write.event_id
  new[BLOCKED_BY], new[OPEN] = nil, cell[OPEN] and not write.ends_attempt
  local closed_for_worker = write.presumed_dead and not new[OPEN] and new[STATUS] == write.status
  local stays = awaits_delivery(cell) and not (write.ends_attempt or write.due_again)
  local ends_late = is_final(new) and awaits_end(cell) and write.ends_attempt
  local awaits = not is_final(new) and (write.awaits_delivery or stays)
  if closed_for_worker or write.due_again then
    new[BEGAN_AT] = nil
    new[OWNER] = closed_for_worker and cell[OWNER] or nil
  elseif awaits and (new[BEGAN_AT] or 0) == 0 then
    new[BEGAN_AT] = job.now
  elseif not new[OPEN] and not awaits then
    new[OWNER] = nil
    new[BEGAN_AT] = ends_late and job.now or cell[BEGAN_AT]
  end
  new[KEPT] = not is_final(new) and (write.kept or cell[KEPT]) or nil
  if write.due_again and not is_final(new) then
    new[PUBLICATION] = (cell[PUBLICATION] or 0) + 1
  elseif write.next_delivery and compare(write.next_delivery, cell) > 0 then
    set_delivery(new, write.next_delivery)
  end
  if write.counts_as_loss then
    new[LOSSES] = (cell[LOSSES] or 0) + 1
  end
  if has_failed(new) and not has_failed(cell) then
    new[FAILURES] = (cell[FAILURES] or 0) + 1
  end
  new[STALL_AFTER], new[STALLED_SINCE], new[STANDS_IN] = new[OPEN] and cell[STALL_AFTER], nil, nil
  set_payload(new)
  return new
end

-- Blocks the row's later stages that were not begun: they get the status of this one, which is final and negative.
local function block(failed, later)
  local message = failed[MESSAGE] and failed[MESSAGE] ~= "" and failed[MESSAGE] or failed[STATUS]
  for _, each in ipairs(later) do
    if not each.old or is_waiting(each.old) then
      local cell = each.old or new_cell(write.schema)
      local new = ended(job, cell, failed[STATUS], write.not_run .. message, write.event_id)
      new[BLOCKED_BY] = place.tag
      put(job, each.place, each.old, new)
    end
  end
end

-- Implements steps._claim_next: claims the row itself for its next stage, or the rows for which its end makes room.
-- Returns the claimed ranges, and the number of bounds of those that were claimed before.
local function claim_next(outbox, cell, new)
  local row = tonumber(place.row)
  if write.next_is_due and new[STATUS] == FINISHED then
    local had_finished = is_final(cell) and cell[STATUS] == FINISHED
    if not outbox.owns_messages or job.cancelled_at or had_finished then
      return nil
    end
    store_claim(job, outbox, write.publisher, 0, { row, row })
    remove_returned(outbox, row)
    save_returned(outbox)
    return { row, row }, 2
  elseif outbox.window then
    remove_returned(outbox, row)
    save_returned(outbox)
    local none = {}
    return claim(job, outbox, {
      publisher = write.publisher, limit = CLAIMS_AT_AN_END, lease = 0,
      dead = none, ended = none, begun = none, waiting = none,
    })
  end
end

local claims = write.publisher and not place.of_callback
local old = read(job, place)
if old and old[EVENT_ID] == write.event_id then
  if claims and is_final(old) and (write.next_is_due or read_outbox().window) then -- steps._claimed_before
    local ranges = claimed_at(old[TIMESTAMP])
    if ranges then
      return { "claimed before", pack(old), ranges }
    end
  end
  return { "same", pack(old) }
end
local cell = old or new_cell(write.schema)
local begins = write.begin and not (write.attempt and write.attempt <= cell[ATTEMPT])
if begins then
  local verdict, begun_cell = apply_begin(job, place, cell, write.begin, write.ends_attempt, write.attempt)
  if verdict == "cancelled" then
    return { "cancelled", job.reason or false }
  elseif verdict ~= "begun" then
    return { "refused", verdict }
  end
  begun_cell[VERSION] = cell[VERSION] -- the write below assigns the step's only version
  cell, write.attempt = begun_cell, begun_cell[ATTEMPT]
end
if is_superseded(cell) then
  return { "superseded", cell[ATTEMPT] }
elseif is_refused_as_cancelled(cell) then
  return { "cancelled", job.reason or false }
end
local new = apply_write(cell)
if not new then
  return { "same", pack(cell) }
end
local blocks = write.block_later_stages and is_final(new) and new[STATUS] < 0
local resumes = begins or (awaits_end(cell) and write.ends_attempt)
local later = read_stages(job, (resumes or blocks) and write.later)
local value, due_again = ARGV[4], write.due_again and not is_final(new)
if not (is_final(new) and new[STATUS] == FINISHED) then
  value = nil
end
claims = claims and is_final(new)
local outbox = (value or due_again or claims) and read_outbox()
if value then
  check_size(KEYS[#KEYS - 1], outbox.values)
end
local packed = put(job, place, old, new)
if value then
  put_value(outbox, ARGV[5], value)
end
if due_again then
  give_back(outbox, place, is_waiting(new) and not write.is_later)
end
if resumes then
  unblock(job, later, place.tag, write.event_id)
end
if blocks then
  block(new, later)
end
local decided = finish(job, place, new)
local ranges, again
if claims then
  ranges, again = claim_next(outbox, cell, new)
end
if ranges and ranges[1] then
  return { "claimed", packed, ranges, again, unpack(decided) }
end
return #decided == 0 and packed or { "written", packed, unpack(decided) }
