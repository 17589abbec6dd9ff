-- The begin of attempts, for write.lua and begin.lua, after common.lua. Implements transitions.apply_begin.

-- Compares two deliveries: -1, 0 or 1.
local function compare(replacements, retries, cell)
  local gap = replacements - (cell[REPLACEMENTS] or 0)
  if gap == 0 then
    gap = retries - (cell[RETRIES] or 0)
  end
  return gap < 0 and -1 or gap > 0 and 1 or 0
end

local function verdict_on(job, place, cell, begin, though_cancelled, goes_on)
  if cell[STATUS] == FINISHED and not cell[OPEN] then
    return "finished"
  elseif job.settled and not place.of_callback and not goes_on then
    return "closed"
  elseif job.cancelled_at and not place.of_callback and not though_cancelled then
    return "cancelled"
  elseif begin.takes_over or goes_on or (cell[OPEN] and begin.supersedes == cell[ATTEMPT]) then
    return "begun"
  end
  local later = compare(begin.delivery[1], begin.delivery[2], cell)
  if later < 0 then
    return "stale"
  end
  return later == 0 and cell[OPEN] and "duplicate" or "begun"
end

-- Returns the verdict, and the cell to write if it has changed. forgotten is the number of an attempt that goes on
-- although the store has lost its begin.
local function apply_begin(job, place, cell, begin, though_cancelled, forgotten)
  local goes_on = forgotten and forgotten > cell[ATTEMPT]
  local verdict = verdict_on(job, place, cell, begin, though_cancelled, goes_on)
  if verdict == "cancelled" and cell[STATUS] > 0 and not is_final(cell) and not cell[OPEN] then
    return verdict, ended(job, cell, CANCELLED, job.reason, begin.event_id)
  elseif verdict ~= "begun" then
    return verdict, nil
  end
  local new = copy(cell)
  new[STATUS], new[MESSAGE], new[TIMESTAMP], new[VERSION] = STARTED, begin.message, job.now, cell[VERSION] + 1
  new[EVENT_ID], new[ATTEMPT], new[OPEN] = begin.event_id, math.max(cell[ATTEMPT] + 1, forgotten or 0), true
  new[REPLACEMENTS], new[RETRIES] = begin.delivery[1], begin.delivery[2]
  if cell[OPEN] and cell[OWNER] and begin.supersedes == cell[ATTEMPT] and not begin.uncounted then
    new[LOSSES] = (cell[LOSSES] or 0) + 1
  end
  new[OWNER], new[KEPT], new[BLOCKED_BY], new[BEGAN_AT] = begin.owner, begin.kept, nil, job.now
  return verdict, new
end

-- Resets the later stages of the row that the failure of this stage had blocked.
local function unblock(job, later, stage, event_id)
  for _, each in ipairs(later) do
    if each.old and each.old[BLOCKED_BY] == stage then
      local new = ended(job, each.old, 0, nil, event_id)
      new[BLOCKED_BY] = nil
      put(job, each.place, each.old, new)
      each.old = new
    end
  end
end
