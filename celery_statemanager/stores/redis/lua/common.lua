-- What write.lua, begin.lua and update.lua share: stores/steps.py in the server's language.
--
-- KEYS[1]  head     hash: incarnation, times (microseconds since the epoch), latches, sequence, total, ...
-- KEYS[2]  tallies  hash: tag -> packed {running, finished, failed, succeeded, ended, alarms, pending,
--                   progress (in 1e-8 cells), lowest rank never written}
-- KEYS[3]  open     set: "row tag" of each open attempt that has an owner
-- KEYS[4]  stream   one entry a change, c = "row tag" of a cell or j = the job; its ids are 1-0, 2-0, 3-0, ...
-- and three for each place of the request: the cell itself, then the row's later stages
--          cells    hash: row -> packed cell (CELL names the fields); of callbacks: tag -> packed cell
--          low      zset: row in seven digits -> status, 0.5 for a 0 with an open attempt; FINISHED is left out
--          written  bitmap: one bit per expected row, by its rank among them
--
-- ARGV[1]  incarnation
-- ARGV[2]  request  JSON, made by requests.py; what is absent is nil or false
--
-- Every step asks first and writes after: an error leaves nothing half done. Its first write is one that a full
-- server refuses (HSET), and then the whole step.
-- Generated before this text: CELL, HEAD (names, in order), EVENTS (length of the stream, approximate).

local FINISHED, CANCELLED = 2147483647, -7
local SUCCEEDED, ENDED, ALARMS, PENDING, UNWRITTEN = 4, 5, 6, 7, 9
local LATCHES = { "success", "failure", "settled" }
local ASKED = {
  "incarnation", "expected", "active_at", "clock_at", "revision", "sequence", "total",
  "cancelled_at", "reason", "success", "failure", "settled",
}

local function open_job(incarnation)
  local values = redis.call("HMGET", KEYS[1], unpack(ASKED))
  if values[1] ~= incarnation then
    return nil
  end
  local job = {}
  for i, name in ipairs(ASKED) do
    job[name] = values[i] or nil
  end
  local time = redis.call("TIME")
  job.now = math.max(time[1] * 1000000 + time[2], tonumber(job.active_at), tonumber(job.clock_at or 0))
  job.expected, job.revision, job.sequence = tonumber(job.expected), tonumber(job.revision), tonumber(job.sequence)
  job.total = cmsgpack.unpack(job.total)
  return job
end

local function publish(job, field, value)
  job.sequence = job.sequence + 1
  redis.call("XADD", KEYS[4], "MAXLEN", "~", EVENTS, string.format("%.0f-0", job.sequence), field, value)
end

-- Lets the latches fall whose condition is met (aggregate.decisions); gives their names.
local function decide(job)
  local decided, total = {}, job.total
  if not job.expected then
    return decided
  end
  local met = {
    success = total[SUCCEEDED] >= job.expected,
    failure = total[ALARMS] > 0,
    settled = total[ENDED] >= job.expected,
  }
  if job.cancelled_at then
    met.settled = total[PENDING] == 0
  end
  for _, name in ipairs(LATCHES) do
    if met[name] and not job[name] then
      decided[#decided + 1] = name
      redis.call("HSET", KEYS[1], name, job.now)
    end
  end
  return decided
end

local function places_of(request)
  local places = {}
  for i, each in ipairs(request.places) do
    local place = { tag = each[1], row = each[2], rank = each[3], counts = each[4] }
    place.cells, place.low, place.written = KEYS[3 * i + 2], KEYS[3 * i + 3], KEYS[3 * i + 4]
    place.field = place.row < 0 and place.tag or place.row
    places[i] = place
  end
  return places
end

local function read(place)
  local packed = redis.call("HGET", place.cells, place.field)
  if not packed then
    return nil
  end
  local cell, values = {}, cmsgpack.unpack(packed)
  for i = 1, #values do
    cell[CELL[i]] = values[i] or nil
  end
  cell.attempt = cell.attempt or 0
  return cell
end

local function pack(cell)
  local last = #CELL
  while (cell[CELL[last]] or 0) == 0 do
    last = last - 1
  end
  local values = {}
  for i = 1, last do
    values[i] = cell[CELL[i]] or false
  end
  return cmsgpack.pack(values)
end

local function new_cell(schema)
  return { status = 0, timestamp = 0, version = 0, event_id = "", attempt = 0, schema = schema }
end

local function copy(cell)
  local made = {}
  for name, value in pairs(cell) do
    made[name] = value
  end
  return made
end

local function is_final(cell)
  return not cell.open and (cell.status < 0 or cell.status == FINISHED)
end

local function is_waiting(cell)
  return cell.status == 0 and not cell.open
end

-- transitions.tally_of, in the order of KEYS[2]
local function tally_of(cell)
  local status, closed = cell.status, cell.open and 0 or 1
  if status == 0 then
    return { 0, 0, 0, 0, 0, 0, 1 - closed, 0 }
  elseif status == FINISHED then
    return { 0, 1, 0, closed, closed, 0, 1 - closed, 0 }
  elseif status < 0 then
    return { 0, 0, 1, 0, closed, status == CANCELLED and 0 or closed, 1 - closed, 0 }
  end
  local by_status = status >= 2 and status <= 100 and status * 1000000 or 0
  return { 1, 0, 0, 0, 0, 0, 1, cell.share or by_status }
end

local function score_of(cell)
  return cell.status == 0 and cell.open and 0.5 or cell.status
end

local function count(job, place, tally, old, new)
  local after, before = tally_of(new), old and tally_of(old)
  for i = 1, 8 do
    local change = after[i] - (before and before[i] or 0)
    tally[i] = tally[i] + change
    if place.counts then
      job.total[i] = job.total[i] + change
    end
  end
end

local function rank(place, tally, old, new)
  if not old then
    redis.call("SETBIT", place.written, place.rank, 1)
    if place.rank == tally[UNWRITTEN] then
      tally[UNWRITTEN] = redis.call("BITPOS", place.written, 0, math.floor(place.rank / 8))
    end
  end
  local score = score_of(new)
  if old and score == score_of(old) then
    return
  elseif score ~= FINISHED then
    redis.call("ZADD", place.low, score, string.format("%07d", place.row))
  elseif old then
    redis.call("ZREM", place.low, string.format("%07d", place.row))
  end
end

-- Stores a cell with all that is derived from it: open attempts, tally, lowest, written rows, stream.
local function put(job, place, old, new)
  redis.call("HSET", place.cells, place.field, pack(new))
  local address = place.row .. " " .. place.tag
  if new.open and new.owner then
    redis.call("SADD", KEYS[3], address)
  elseif old and old.open and old.owner then
    redis.call("SREM", KEYS[3], address)
  end
  if place.row < 0 then
    return
  end
  local packed = redis.call("HGET", KEYS[2], place.tag)
  local tally = packed and cmsgpack.unpack(packed) or { 0, 0, 0, 0, 0, 0, 0, 0, 0 }
  if place.rank >= 0 then
    count(job, place, tally, old, new)
    rank(place, tally, old, new)
  end
  local recount = cmsgpack.pack(tally)
  if recount ~= packed then
    redis.call("HSET", KEYS[2], place.tag, recount)
  end
  publish(job, "c", address)
end

-- Ends a step that changed cells: decides the latches if an ending may have moved one, or, of a cancelled job, a
-- coming to rest; gives their names.
local function finish(job, place, new)
  local decided = {}
  if place.counts and (is_final(new) or job.cancelled_at) then
    decided = decide(job)
  end
  if #decided > 0 then
    job.revision = job.revision + 1
    publish(job, "j", "")
  end
  local total = cmsgpack.pack(job.total)
  redis.call("HSET", KEYS[1], "active_at", job.now, "revision", job.revision, "sequence", job.sequence, "total", total)
  return decided
end

local function ended(job, cell, status, message, event_id)
  local new = copy(cell)
  new.status, new.message, new.timestamp, new.version = status, message, job.now, cell.version + 1
  new.event_id, new.kept = event_id, nil
  return new
end
