-- The reads of write.lua, begin.lua and reset.lua, after storing.lua. They also check that nothing was evicted.

-- Returns the i-th cell of a request: the first is the requested one, the others are the row's later stages.
local function place_of(i, tag, row, rank, counts, is_last)
  local of_callback = row == "-1"
  return {
    tag = tag, row = row, rank = rank, counts = counts, is_last = is_last, of_callback = of_callback,
    field = of_callback and tag or row,
    cells = KEYS[3 * i + 2], low = KEYS[3 * i + 3], written = KEYS[3 * i + 4],
  }
end

-- Reads the tally of a cell's column, and checks that nothing of the column was evicted.
local function read_tally(job, place, has_cell)
  place.tally = redis.call("HGET", KEYS[2], place.tag)
  if not place.tally and has_cell then
    raise_evicted(KEYS[2])
  elseif not place.tally then
    check_size(KEYS[2], job.tags)
  elseif not has_cell then
    check_column(place, cmsgpack.unpack(place.tally))
  end
end

-- Reads a cell. All cells of a step are read before its first write.
local function read(job, place)
  local packed = redis.call("HGET", place.cells, place.field)
  if not place.of_callback then
    read_tally(job, place, packed)
  elseif not packed then
    check_size(place.cells, job.runs)
  end
  if not packed then
    return nil
  end
  local cell = cmsgpack.unpack(packed)
  cell[ATTEMPT] = cell[ATTEMPT] or 0
  return cell
end

-- Reads the later stages of the row: {place, old cell} for each.
local function read_stages(job, cells)
  local stages = {}
  for i, cell in ipairs(cells or {}) do
    local place = place_of(i + 1, unpack(cell))
    stages[i] = { place = place, old = read(job, place) }
  end
  return stages
end
