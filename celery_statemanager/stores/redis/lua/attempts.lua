-- The begin of attempts, for write.lua and begin.lua, after reading.lua. Implements transitions.apply_begin.

-- Compares a delivery with that of a cell: -1, 0 or 1.
local function compare(delivery, cell)
  local gap = delivery[1] - (cell[PUBLICATION] or 0)
  if gap == 0 then
    gap = delivery[2] - (cell[REPLACEMENTS] or 0)
  end
  if gap == 0 then
    gap = delivery[3] - (cell[RETRIES] or 0)
  end
  return gap < 0 and -1 or gap > 0 and 1 or 0
end

local function set_delivery(cell, delivery)
  cell[PUBLICATION], cell[REPLACEMENTS], cell[RETRIES] = unpack(delivery)
end

-- Implements transitions._reopens.
local function reopens(job, place, cell)
  if job.cancelled_at or not place.counts then
    return false
  end
  local never_began = cell[STATUS] == LOST and not has_run(cell) and not cell[BLOCKED_BY]
  return never_began or not is_final(cell)
end

-- Implements transitions._verdict_on_delivery.
local function verdict_on_delivery(job, place, cell, begin)
  local later = compare(begin.delivery, cell)
  if later < 0 then
    return "stale"
  elseif later == 0 and cell[OPEN] then
    return "duplicate"
  elseif later == 0 and is_final(cell) and has_run(cell) and begin.owner then
    return "closed"
  end
  return begin.may_wait and not place.of_callback and job.paused and is_waiting(cell) and "paused" or "begun"
end

local function verdict_on(job, place, cell, begin, though_cancelled, goes_on)
  if cell[STATUS] == FINISHED and not cell[OPEN] then
    return "finished"
  elseif job.settled and not place.of_callback and not (goes_on or reopens(job, place, cell)) then
    return "closed"
  elseif job.cancelled_at and not place.of_callback and not though_cancelled then
    return "cancelled"
  elseif begin.takes_over or goes_on or (cell[OPEN] and begin.supersedes == cell[ATTEMPT]) then
    return "begun"
  end
  return verdict_on_delivery(job, place, cell, begin)
end

-- Implements transitions._waiting_again.
local function waiting_again(job, cell, begin)
  local new = copy(cell)
  new[TIMESTAMP], new[VERSION], new[EVENT_ID] = job.now, cell[VERSION] + 1, begin.event_id
  set_delivery(new, begin.delivery)
  new[PUBLICATION] = new[PUBLICATION] + 1
  return new
end

-- Returns the verdict, and the cell to write if it has changed. forgotten is the number of an attempt that continues
-- although the store has lost its begin.
local function apply_begin(job, place, cell, begin, though_cancelled, forgotten)
  local goes_on = forgotten and forgotten > cell[ATTEMPT]
  local verdict = verdict_on(job, place, cell, begin, though_cancelled, goes_on)
  if verdict == "paused" then
    return verdict, waiting_again(job, cell, begin)
  elseif verdict == "cancelled" and cell[STATUS] > 0 and not is_final(cell) and not cell[OPEN] then
    return verdict, ended(job, cell, CANCELLED, job.reason, begin.event_id)
  elseif verdict ~= "begun" then
    return verdict, nil
  end
  local new = copy(cell)
  new[STATUS], new[MESSAGE], new[TIMESTAMP], new[VERSION] = STARTED, begin.message, job.now, cell[VERSION] + 1
  new[EVENT_ID], new[ATTEMPT], new[OPEN] = begin.event_id, math.max(cell[ATTEMPT] + 1, forgotten or 0), true
  set_delivery(new, begin.delivery)
  if cell[OPEN] and cell[OWNER] and begin.supersedes == cell[ATTEMPT] and not begin.uncounted then
    new[LOSSES] = (cell[LOSSES] or 0) + 1
  end
  new[STALL_AFTER], new[STALLED_SINCE], new[STANDS_IN] = begin.stall_after, nil, nil
  new[OWNER], new[KEPT], new[BLOCKED_BY], new[BEGAN_AT] = begin.owner, begin.kept or cell[KEPT], nil, job.now
  return verdict, new
end

-- Resets the stages of the row that the failure of one had blocked.
local function unblock(job, stages, failed, event_id)
  for _, each in ipairs(stages) do
    if each.old and each.old[BLOCKED_BY] == failed then
      local new = ended(job, each.old, 0, nil, event_id)
      new[BLOCKED_BY] = nil
      put(job, each.place, each.old, new)
      each.old = new
    end
  end
end
