-- The storing of cells, for write.lua, begin.lua and reset.lua, after common.lua.

local function pack(cell)
  local last = CELL_SIZE
  while (cell[last] or 0) == 0 do
    last = last - 1
  end
  local values = { unpack(cell, 1, last) }
  for i = 1, last do
    values[i] = values[i] or false
  end
  return cmsgpack.pack(values)
end

local function new_cell(schema)
  local cell = { 0, 0, 0, "", 0 }
  cell[SCHEMA] = schema
  return cell
end

local function copy(cell)
  return { unpack(cell, 1, CELL_SIZE) }
end

local function is_final(cell)
  return not cell[OPEN] and (cell[STATUS] < 0 or cell[STATUS] == FINISHED)
end

local function is_waiting(cell)
  return cell[STATUS] == 0 and not cell[OPEN]
end

-- Implements Cell.has_run.
local function has_run(cell)
  return cell[OWNER] or (cell[BEGAN_AT] or 0) ~= 0
end

-- Returns whether another process closed the attempt, so that its own end may still follow (Cell.awaits_end).
local function awaits_end(cell)
  return cell[OWNER] and not cell[OPEN] and (cell[BEGAN_AT] or 0) == 0
end

-- Returns whether the attempt has ended, and the broker is to deliver its message again (Cell.awaits_delivery).
local function awaits_delivery(cell)
  return cell[OWNER] and not cell[OPEN] and not is_final(cell) and (cell[BEGAN_AT] or 0) ~= 0
end

-- Implements Cell.held.
local function is_held(cell)
  return cell[OWNER] and (cell[OPEN] or awaits_delivery(cell))
end

local function rank(place, tally, old, new)
  if not old then
    redis.call("SETBIT", place.written, place.rank, 1)
    if tally[N_WRITTEN] then
      tally[N_WRITTEN] = tally[N_WRITTEN] + 1
    end
    if place.rank == tally[N_UNWRITTEN] then
      tally[N_UNWRITTEN] = redis.call("BITPOS", place.written, 0, math.floor(place.rank / 8))
    end
  end
  local score = score_of(new)
  if old and score == score_of(old) then
    return
  elseif score ~= FINISHED then
    redis.call("ZADD", place.low, score, member_of(place))
  elseif old then
    redis.call("ZREM", place.low, member_of(place))
  end
end

-- Stores a cell and updates everything derived from it: open attempts, tally, lowest, written rows, stream.
-- Returns the packed cell.
local function put(job, place, old, new)
  local packed_cell = pack(new)
  local is_new = redis.call("HSET", place.cells, place.field, packed_cell) == 1
  local address = place.row .. " " .. place.tag
  if is_held(new) then
    redis.call("SADD", KEYS[3], address)
  elseif old and is_held(old) then
    redis.call("SREM", KEYS[3], address)
  end
  if place.of_callback then
    if is_new then
      redis.call("HSET", KEYS[1], "runs", redis.call("HLEN", place.cells))
    end
    return packed_cell
  end
  local tally = place.tally and cmsgpack.unpack(place.tally) or { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }
  if place.rank >= 0 then
    count(job, place, tally, old, new)
    rank(place, tally, old, new)
  end
  local repacked = cmsgpack.pack(tally)
  if repacked ~= place.tally and redis.call("HSET", KEYS[2], place.tag, repacked) == 1 then
    redis.call("HSET", KEYS[1], "tags", redis.call("HLEN", KEYS[2]))
  end
  place.tally = repacked
  publish(job, "c", address)
  return packed_cell
end

-- Stores what changed cells have changed in the head.
local function save(job)
  local total = job.total and { "total", cmsgpack.pack(job.total) } or {}
  redis.call("HSET", KEYS[1], "active_at", job.now, "sequence", job.sequence, unpack(total))
end

-- Ends a step that changed cells: decides the latches if the cell is final or the job cancelled; returns their names.
local function finish(job, place, new)
  local decided = {}
  if place.counts and (is_final(new) or job.cancelled_at) then
    decided = decide(job)
  end
  if #decided > 0 then
    publish(job, "j", "")
    redis.call("HINCRBY", KEYS[1], "revision", 1)
  end
  save(job)
  return decided
end

local function ended(job, cell, status, message, event_id)
  local new = copy(cell)
  new[STATUS], new[MESSAGE], new[TIMESTAMP], new[VERSION] = status, message, job.now, cell[VERSION] + 1
  new[EVENT_ID], new[KEPT], new[OWNER] = event_id, nil, nil
  return new
end
