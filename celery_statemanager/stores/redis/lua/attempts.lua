-- The begin of attempts, for write.lua and begin.lua, after reading.lua. Implements transitions.apply_begin.

-- Compares two deliveries: -1, 0 or 1.
local function compare(replacements, retries, cell)
  local gap = replacements - (cell[REPLACEMENTS] or 0)
  if gap == 0 then
    gap = retries - (cell[RETRIES] or 0)
  end
  return gap < 0 and -1 or gap > 0 and 1 or 0
end

-- Implements transitions._reopens.
local function reopens(job, place, cell)
  if job.cancelled_at or not place.counts then
    return false
  end
  local never_began = cell[STATUS] == LOST and cell[ATTEMPT] == 0 and not cell[BLOCKED_BY]
  return never_began or not is_final(cell)
end

local function verdict_on(job, place, cell, begin, though_cancelled, goes_on, recovers)
  if cell[STATUS] == FINISHED and not cell[OPEN] then
    return "finished"
  elseif job.settled and not place.of_callback and not (goes_on or recovers or reopens(job, place, cell)) then
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

-- Returns the verdict, and the cell to write if it has changed. forgotten is the number of an attempt that continues
-- although the store has lost its begin; recovers says whether the begin proves an earlier stage finished.
local function apply_begin(job, place, cell, begin, recovers, though_cancelled, forgotten)
  local goes_on = forgotten and forgotten > cell[ATTEMPT]
  local verdict = verdict_on(job, place, cell, begin, though_cancelled, goes_on, recovers)
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

-- Implements transitions.is_unreported.
local function is_unreported(cell)
  if not cell[OWNER] or (cell[STATUS] == FINISHED and not cell[OPEN]) then
    return false
  end
  return cell[STATUS] >= 0 or (cell[STATUS] == LOST and not cell[OPEN])
end

-- Returns the last earlier stage of the row that has begun, and the stages between it and this one, if this begin proves
-- that it has finished.
local function unreported_stage(job, begin)
  local nearer = {}
  local earlier = read_stages(job, begin.earlier, #(begin.later or {}))
  for _, stage in ipairs(earlier) do
    if stage.old and stage.old[ATTEMPT] > 0 then
      return is_unreported(stage.old) and { place = stage.place, old = stage.old, nearer = nearer } or nil
    end
    nearer[#nearer + 1] = stage
  end
end

-- Ends that stage as FINISHED (transitions.proven), and resets the stages after it that its loss had blocked.
local function finish_stage(job, stage, later, event_id)
  local old = stage.old
  local new = ended(job, old, FINISHED, old[OPEN] and old[MESSAGE] or nil, event_id)
  new[OWNER], new[OPEN], new[BLOCKED_BY], new[BEGAN_AT] = old[OWNER], false, nil, nil
  if new[PROGRESS] then
    new[SHARE], new[DONE] = new[FULL], true
  end
  put(job, stage.place, old, new)
  unblock(job, later, stage.place.tag, event_id)
  unblock(job, stage.nearer, stage.place.tag, event_id)
end
