-- What the scripts that change a job share: stores/steps.py in the server's language. Cells are stored by storing.lua.
--
-- KEYS[1]  head     hash: incarnation, times (microseconds since the epoch), latches, sequence, total, tags, ...; total
--                   is the sum of the tallies of what is expected, but for their progress and stalls: no step asks for
--                   these; tags and runs are the numbers of the tallies and of the callbacks' cells; earlier_failures
--                   is that of the total before the generation, missing for 0; reset_generation is the generation
--                   whose rows are reset, if any; max_failed and deadline are those of Policy; earlier_failed_rows is
--                   missing for 0; for the outbox, see returned.lua and claiming.lua
-- KEYS[2]  tallies  hash: tag -> packed {running, finished, failed, succeeded, ended, failures, pending,
--                   progress (in 1e-8 cells), lowest rank never written, not_run, ranks written, rows ended, rows
--                   failed, stalled}; what is false or missing at the end is 0, unknown for the ranks, and not counted
--                   for the rows; failures counts the cells that had failed in an earlier release, although these
--                   have no failures of their own
-- KEYS[3]  open     set: "row tag" of each attempt that sweeps check (Cell.held): it is open or awaits a delivery
-- KEYS[4]  stream   one entry a change, c = "row tag" of a cell or j = the job; its ids are 1-0, 2-0, 3-0, ...
-- and three for each cell of the request: the one that is asked for, then the row's later stages
--          cells    hash: row -> packed cell (an array; what stands where is said by TIMESTAMP, STATUS, ...); of
--                   callbacks: tag -> packed cell
--          low      zset: row in seven digits -> status, 0.5 for a 0 with an open attempt; FINISHED is left out. A
--                   blocked cell that is counted as not_run stands half above its status; one that a release without
--                   that count had blocked stands at its status and is counted as failed
--          written  bitmap: one bit per expected row, by its rank among them
-- and those of returned.lua at the end if the step may need them
--
-- ARGV[1]  incarnation
-- ARGV[2]  request  packed array, made by requests.py; what is absent is nil or false
--
-- Every step asks first and writes after: an error leaves nothing half done. Its first write is one that a full
-- server refuses (HSET), and then the whole step.
--
-- What names in capitals stand for is put in by scripts.py: TIMESTAMP, STATUS, ... SCHEMA are the places of a cell's
-- fields (cells.CELL), N_RUNNING, ... those of a tally's, EVENTS is the length of the stream, approximate. Fields of
-- requests, write.status or begin.owner, become elements likewise. A cell's empty fields are false or missing.

local function open_job(incarnation)
  local values = redis.call(
    "HMGET", KEYS[1], "incarnation", "expected", "active_at", "clock_at", "sequence", "total", "cancelled_at", "settled",
    "tags", "runs", "paused", "earlier_failures", "reset_generation", "max_failed", "earlier_failed_rows",
    "deadline"
  )
  if values[1] ~= incarnation then
    return nil
  end
  local time = redis.call("TIME")
  return {
    expected = values[2],
    now = math.max(time[1] * 1000000 + time[2], values[3], values[4] or 0),
    sequence = values[5],
    packed_total = values[6],
    cancelled_at = values[7],
    reason = values[7] and redis.call("HGET", KEYS[1], "reason"),
    settled = values[8],
    tags = values[9],
    runs = values[10],
    paused = values[11],
    earlier_failures = values[12],
    reset_generation = values[13],
    max_failed = tonumber(values[14] or nil),
    earlier_failed_rows = values[15],
    deadline = tonumber(values[16] or nil),
  }
end

-- Returns the job's total tally. It is unpacked at the first call, because most writes change only the progress.
local function total_of(job)
  job.total = job.total or cmsgpack.unpack(job.packed_total)
  return job.total
end

-- Adds a change to the stream. The time in its id distinguishes it from one of the same number in a restored copy.
local function publish(job, field, value)
  job.sequence = string.format("%.0f", job.sequence + 1)
  local id = job.sequence .. "-" .. string.format("%.0f", job.now % 2147483648)
  redis.call("XADD", KEYS[4], "MAXLEN", "~", EVENTS, id, field, value)
end

-- Cancels the job if more rows have failed than it tolerates (aggregate.stopped). Returns whether they have.
local function stop(job, failed)
  local failed_rows = math.max(0, failed - (job.earlier_failed_rows or 0))
  if failed_rows > job.max_failed and not job.cancelled_at and not job.settled then
    job.cancelled_at = string.format("%.0f", job.now)
    local rows = failed_rows == 1 and "1 row" or failed_rows .. " rows"
    job.reason = rows .. " failed, at most " .. job.max_failed .. " may (max_failed)"
    redis.call("HSET", KEYS[1], "cancelled_at", job.cancelled_at, "reason", job.reason)
  end
  return failed_rows > job.max_failed
end

-- Decides the latches whose condition is met, unless rows are being reset (aggregate.decisions); returns their names.
local function decide(job)
  local decided = {}
  local function decide_latch(name, met)
    if met and redis.call("HSETNX", KEYS[1], name, job.now) == 1 then
      decided[#decided + 1] = name
      job[name] = job.now
    end
  end
  if job.expected and not job.reset_generation then
    local total, expected = total_of(job), tonumber(job.expected)
    local succeeded, has_failed = total[N_SUCCEEDED], total[N_FAILURES] > tonumber(job.earlier_failures or 0)
    if job.max_failed then
      local failed = total[N_FAILED_ROWS] or 0
      has_failed = stop(job, failed)
      succeeded = failed <= job.max_failed and succeeded + failed + (total[N_NOT_RUN] or 0) or -1
    end
    decide_latch("success", not job.cancelled_at and succeeded >= expected)
    decide_latch("failure", has_failed)
    if job.cancelled_at then
      decide_latch("settled", total[N_PENDING] == 0)
    else
      decide_latch("settled", total[N_ENDED] >= expected)
    end
  end
  return decided
end

-- Returns whether the failure of an earlier stage gave the cell its status.
local function is_not_run(cell)
  return cell[BLOCKED_BY] and cell[STATUS] < 0 and not cell[OPEN]
end

-- Implements Cell.has_failed.
local function has_failed(cell)
  return cell[STATUS] < 0 and cell[STATUS] ~= CANCELLED and not cell[OPEN] and not cell[BLOCKED_BY]
end

-- Implements transitions.tally_of, in the order of KEYS[2].
local function tally_of(cell, not_run)
  local status, closed, failures = cell[STATUS], cell[OPEN] and 0 or 1, cell[FAILURES] or 0
  if status == 0 then
    return { 0, 0, 0, 0, 0, failures, 1 - closed, 0 }
  elseif status == FINISHED then
    return { 0, 1, 0, closed, closed, failures, 1 - closed, 0 }
  elseif not_run then
    return { 0, 0, 0, 0, 1, failures, 0, 0, 0, 1 }
  elseif status < 0 then
    return { 0, 0, 1, 0, closed, failures, 1 - closed, 0 }
  end
  local by_status = status >= 2 and status <= 100 and status * 1000000 or 0
  return { 1, 0, 0, 0, 0, failures, 1, cell[SHARE] or by_status }
end

local function score_of(cell)
  if is_not_run(cell) then
    return cell[STATUS] + 0.5
  end
  return cell[STATUS] == 0 and cell[OPEN] and 0.5 or cell[STATUS]
end

local function member_of(place)
  return string.format("%07d", place.row)
end

-- Returns whether the tally counts a stored cell as not_run.
local function was_not_run(place, cell)
  local score = is_not_run(cell) and redis.call("ZSCORE", place.low, member_of(place))
  return score and tonumber(score) == cell[STATUS] + 0.5
end

local function is_stalled(cell)
  return (cell[STALLED_SINCE] or 0) ~= 0
end

local function count(job, place, tally, old, new)
  local after, before = tally_of(new, is_not_run(new)), old and tally_of(old, was_not_run(place, old))
  local failed = (has_failed(new) and 1 or 0) - (old and has_failed(old) and 1 or 0)
  if failed ~= 0 then
    for _, each in ipairs({ tally, place.counts and total_of(job) or nil }) do
      each[N_FAILED_ROWS] = each[N_FAILED_ROWS] and each[N_FAILED_ROWS] + failed
    end
  end
  for i = 1, N_NOT_RUN do
    local change = (after[i] or 0) - (before and before[i] or 0)
    if change ~= 0 then
      tally[i] = (tally[i] or 0) + change
      if place.counts and i ~= N_PROGRESS then
        local total = total_of(job)
        total[i] = total[i] and total[i] + change
      end
      if i == N_ENDED and place.is_last and tally[N_ROWS] then
        local total = total_of(job)
        tally[N_ROWS], total[N_ROWS] = tally[N_ROWS] + change, total[N_ROWS] and total[N_ROWS] + change
      end
    end
  end
  local stalls = (is_stalled(new) and 1 or 0) - (old and is_stalled(old) and 1 or 0)
  if stalls ~= 0 then
    for i = N_NOT_RUN, N_FAILED_ROWS do -- a tally of an earlier release may end before; an array has no gaps
      tally[i] = tally[i] or false
    end
    tally[N_STALLED] = (tally[N_STALLED] or 0) + stalls
  end
end
