-- Writes one cell, blocks or unblocks the later stages of its row, and decides the job's latches. One step, one slot.
--
-- KEYS, ARGV[1], ARGV[2]  as in common.lua; the request is requests.WRITE
-- ARGV[3]                 payload without its progress, JSON; empty for none
-- Returns {"gone"}, {"superseded", attempt}, {"cancelled", reason}, {"refused", verdict}, {"same", cell},
-- {"written", cell, names of the decided latches ...}, {"claimed", cell, numbers of rows that were claimed before and
-- that are claimed now, names ...}, or the cell alone if the write has neither claimed rows nor decided a latch. A
-- repeated write returns {"claimed before", cell, numbers as above} if the first one claimed rows.

local job = open_job(ARGV[1])
if not job then
  return { "gone" }
end
local write = cmsgpack.unpack(ARGV[2])
local place = place_of(1, write.tag, write.row, write.rank, write.counts, write.is_last)

-- Implements transitions._ends_late.
local function ends_late(cell)
  return write.ends_attempt and awaits_end(cell)
    and (write.status == FINISHED or not (write.presumed_dead or cell[STATUS] == FINISHED))
end

local function is_superseded(cell)
  local delivery = write.if_delivery
  return (write.attempt and write.attempt ~= cell[ATTEMPT])
    or (delivery and (write.if_owner ~= cell[OWNER] or compare(delivery[1], delivery[2], cell) ~= 0))
    or (write.when == "open" and not cell[OPEN] and not ends_late(cell))
    or (write.when == "idle" and (cell[OPEN] or is_final(cell)))
end

-- A cancelled job accepts writes that end a begun cell, and all writes of its callbacks.
local function is_refused_as_cancelled(cell)
  if not job.cancelled_at or place.of_callback or write.ends_attempt then
    return false
  end
  return is_waiting(cell) or not (write.status < 0 or write.status == FINISHED)
end

local function status_and_message(cell)
  if job.cancelled_at and write.when == "idle" then
    return CANCELLED, job.reason
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

local function apply_write(cell)
  local new = copy(cell)
  new[STATUS], new[MESSAGE] = status_and_message(cell)
  new[TIMESTAMP], new[VERSION], new[EVENT_ID] = job.now, cell[VERSION] + 1, write.event_id
  new[BLOCKED_BY], new[OPEN] = nil, cell[OPEN] and not write.ends_attempt
  local closed_for_worker = write.presumed_dead and not new[OPEN] and new[STATUS] == write.status
  local awaits = not is_final(new) and (write.awaits_delivery or (awaits_delivery(cell) and not write.ends_attempt))
  if closed_for_worker then
    new[BEGAN_AT] = nil
  elseif awaits and (new[BEGAN_AT] or 0) == 0 then
    new[BEGAN_AT] = job.now
  elseif not new[OPEN] and not awaits then
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

local old = read(job, place)
if old and old[EVENT_ID] == write.event_id then
  if write.publisher and is_final(old) and not place.of_callback then -- steps._claimed_before
    local first, after_last = claimed_at(old[TIMESTAMP])
    if first then
      return { "claimed before", pack(old), first, after_last }
    end
  end
  return { "same", pack(old) }
end
local cell = old or new_cell(write.schema)
local begins = write.begin and not (write.attempt and write.attempt <= cell[ATTEMPT])
local stage = begins and unreported_stage(job, write.begin)
if begins then
  local verdict, begun_cell = apply_begin(job, place, cell, write.begin, stage, write.ends_attempt, write.attempt)
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
local blocks = write.block_later_stages and is_final(new) and new[STATUS] < 0
local resumes = begins or (awaits_end(cell) and write.ends_attempt)
local later = read_stages(job, (resumes or blocks) and write.later)
local packed = put(job, place, old, new)
if stage then
  finish_stage(job, stage, later, write.event_id)
end
if resumes then
  unblock(job, later, place.tag, write.event_id)
end
if blocks then
  block(new, later)
end
local decided = finish(job, place, new)
if write.publisher and is_final(new) and not place.of_callback then -- steps._claim_next
  local before, claimed = claim(job, write.publisher, CLAIMS_AT_AN_END, 0, {}, true)
  if before and claimed > before then
    return { "claimed", packed, before, claimed, unpack(decided) }
  end
end
return #decided == 0 and packed or { "written", packed, unpack(decided) }
