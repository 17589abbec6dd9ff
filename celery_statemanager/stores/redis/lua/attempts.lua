-- How attempts begin, for write.lua and begin.lua; stands after common.lua. What transitions.begun says.

local STARTED = 1

-- Compares two deliveries: -1, 0 or 1.
local function compare(replacements, retries, cell)
  local gap = replacements - (cell.replacements or 0)
  if gap == 0 then
    gap = retries - (cell.retries or 0)
  end
  return gap < 0 and -1 or gap > 0 and 1 or 0
end

local function verdict_on(job, place, cell, begin, though_cancelled)
  if cell.status == FINISHED and not cell.open then
    return "finished"
  elseif place.row >= 0 and job.settled then
    return "closed"
  elseif place.row >= 0 and job.cancelled_at and not though_cancelled then
    return "cancelled"
  elseif begin.takes_over or (cell.open and begin.supersedes == cell.attempt) then
    return "begun"
  end
  local later = compare(begin.delivery[1], begin.delivery[2], cell)
  if later < 0 then
    return "stale"
  end
  return later == 0 and cell.open and "duplicate" or "begun"
end

-- transitions.begun: the verdict, and the cell to write if it changed
local function begun(job, place, cell, begin, though_cancelled)
  local verdict = verdict_on(job, place, cell, begin, though_cancelled)
  if verdict == "cancelled" and cell.status > 0 and not is_final(cell) and not cell.open then
    return verdict, ended(job, cell, CANCELLED, job.reason, begin.event_id)
  elseif verdict ~= "begun" then
    return verdict, nil
  end
  local new = copy(cell)
  new.status, new.message, new.timestamp, new.version = STARTED, begin.message, job.now, cell.version + 1
  new.event_id, new.attempt, new.open = begin.event_id, cell.attempt + 1, true
  new.replacements, new.retries = begin.delivery[1], begin.delivery[2]
  if cell.open and cell.owner and begin.supersedes == cell.attempt then
    new.losses = (cell.losses or 0) + 1
  end
  new.owner, new.kept, new.blocked_by, new.began_at = begin.owner, begin.kept, nil, job.now
  return verdict, new
end

-- Takes back what the failure of this stage gave to the row's later ones.
local function unblock(job, places, event_id)
  for i = 2, #places do
    local old = read(places[i])
    if old and old.blocked_by == places[1].tag then
      local new = ended(job, old, 0, nil, event_id)
      new.blocked_by = nil
      put(job, places[i], old, new)
    end
  end
end
