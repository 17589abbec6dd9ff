-- Resets a row from one of its stages on, and returns it to the outbox (steps.reset_row). One step, one slot.
--
-- KEYS, ARGV[1], ARGV[2]  as in common.lua; the request is requests.RESET
-- Returns {"gone"}, {"refused"} if the row must not run again, or {"reset"}.

local job = open_job(ARGV[1])
if not job then
  return { "gone" }
end
local reset = cmsgpack.unpack(ARGV[2])
local place = place_of(1, reset.tag, reset.row, reset.rank, reset.counts, reset.is_last)
local stages = read_stages(job, reset.later)
table.insert(stages, 1, { place = place, old = read(job, place) })

local has_succeeded, was_reset = true, false
for _, each in ipairs(stages) do
  each.cell = each.old or new_cell(reset.schema)
  if not (is_final(each.cell) or is_waiting(each.cell)) then
    return { "refused" }
  end
  has_succeeded = has_succeeded and each.cell[STATUS] == FINISHED
  was_reset = was_reset or each.cell[GENERATION] == reset.generation
end
local is_current = tonumber(job.reset_generation) == reset.generation
if not is_current or job.cancelled_at or has_succeeded or was_reset then
  return { "refused" }
end

-- Implements transitions.reset.
local function reset_cell(cell)
  local new = ended(job, cell, 0, nil, reset.event_id)
  new[PUBLICATION], new[REPLACEMENTS], new[RETRIES] = (cell[PUBLICATION] or 0) + 1, nil, nil
  new[LOSSES], new[BLOCKED_BY], new[BEGAN_AT], new[GENERATION] = nil, nil, nil, reset.generation
  return new
end

local outbox = read_outbox()
for _, each in ipairs(stages) do
  put(job, each.place, each.old, reset_cell(each.cell))
end
give_back(outbox, place, not reset.is_later)
save(job)
return { "reset" }
