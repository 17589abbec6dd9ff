-- Reads a job and some of its columns in one step.
--
-- KEYS     1 head, 2 tallies, 3 stream, 4 open, then for each column cells, low, written (see common.lua)
-- ARGV[1]  incarnation
-- ARGV[2]  the number of tags that the caller has read; -1 to skip the check
-- ARGV[3]  also return the sets of rows if they have at most about this number of members; 0 for never
-- ARGV[4]  also return the changes after the change of this number; "" for none
-- ARGV[5]  for each column its tag and its first expected row ...
-- Returns {"gone"}, {"tags", tag ...} if the job has another number of tags, or {"read", values of HEAD, columns,
-- changes}.
-- A column is {tally, {row, cell, ...}, stalled rows} with the lowest cell of each kind; FINISHED only if no cell is
-- lower. The stalled rows are missing unless sets or changes are wanted. With sets it is {..., failed rows, running
-- rows, rows of status 0, bitmap of the written ranks, rows not run}.
-- Changes are the address of each changed cell and its score in low, nil if it has none. They are nil if the stream
-- does not contain all of them.

local columns = {}
for i = 5, #ARGV, 2 do
  local k = 5 + 3 * (i - 5) / 2
  columns[#columns + 1] = { tag = ARGV[i], first = ARGV[i + 1], cells = KEYS[k], low = KEYS[k + 1], written = KEYS[k + 2] }
end

local function rows_between(low, least, most)
  return redis.call("ZRANGEBYSCORE", low, least, most)
end

-- Returns the failed rows, and those that were not run.
local function negative_rows(low)
  local scored, failed, not_run = redis.call("ZRANGEBYSCORE", low, "-inf", "(0", "WITHSCORES"), {}, {}
  for i = 1, #scored, 2 do
    local rows = tonumber(scored[i + 1]) % 1 == 0 and failed or not_run
    rows[#rows + 1] = scored[i]
  end
  return failed, not_run
end

local function are_small(limit)
  local size = 0
  for _, column in ipairs(columns) do
    size = size + redis.call("ZCARD", column.low) + redis.call("STRLEN", column.written) / 64
  end
  return size <= limit
end

-- Returns the stalled rows, which are among those of the open attempts.
local function stalled_rows(column)
  local rows = {}
  for _, address in ipairs(redis.call("SMEMBERS", KEYS[4])) do
    local row, tag = string.match(address, "^(%-?%d+) (.*)$")
    local cell = tag == column.tag and redis.call("HGET", column.cells, row)
    if cell and (cmsgpack.unpack(cell)[STALLED_SINCE] or 0) ~= 0 then
      rows[#rows + 1] = row
    end
  end
  return rows
end

local function read(column, with_sets, with_stalled)
  local low, tally = column.low, redis.call("HGET", KEYS[2], column.tag)
  local counts = tally and cmsgpack.unpack(tally)
  if counts then
    check_column(column, counts)
  end
  local first = redis.call("ZRANGE", low, 0, 0, "WITHSCORES")
  local lowest, status = { first[1] or column.first }, math.floor(tonumber(first[2] or 0))
  for _, score in ipairs({ status + 0.5, 0, status < 0 and 0.5 or nil }) do
    lowest[#lowest + 1] = redis.call("ZRANGEBYSCORE", low, score, score, "LIMIT", 0, 1)[1]
  end
  local cells = {}
  for _, row in ipairs(lowest) do
    cells[#cells + 1] = row
    cells[#cells + 1] = redis.call("HGET", column.cells, tonumber(row))
  end
  local has_stalled = with_stalled and counts and (counts[N_STALLED] or 0) > 0
  local stalled = has_stalled and stalled_rows(column) or {}
  if not with_sets then
    return { tally, cells, stalled }
  end
  local failed, not_run = negative_rows(low)
  local running, zero = rows_between(low, 1, "+inf"), rows_between(low, 0, 0.5)
  return { tally, cells, stalled, failed, running, zero, redis.call("GET", column.written), not_run }
end

local function changes_since(since, newest)
  local entries = redis.call("XRANGE", KEYS[3], string.format("%.0f-0", since + 1), "+")
  if #entries ~= newest - since then
    return false
  end
  local low, changes, seen = {}, {}, {}
  for _, column in ipairs(columns) do
    low[column.tag] = column.low
  end
  for _, entry in ipairs(entries) do
    local address = entry[2][2]
    local row, tag = string.match(address, "^(%d+) (.*)$")
    if low[tag] and not seen[address] then
      seen[address] = true
      changes[#changes + 1] = address
      changes[#changes + 1] = redis.call("ZSCORE", low[tag], string.format("%07d", row))
    end
  end
  return changes
end

local head = redis.call("HMGET", KEYS[1], HEAD)
if head[1] ~= ARGV[1] then
  return { "gone" }
elseif ARGV[2] ~= "-1" and redis.call("HLEN", KEYS[2]) ~= tonumber(ARGV[2]) then
  return { "tags", unpack(redis.call("HKEYS", KEYS[2])) }
end
check_size(KEYS[2], head[#head - 1])
local limit, since, read_columns = tonumber(ARGV[3]), tonumber(ARGV[4]), {}
local with_sets = limit > 0 and are_small(limit)
for i, column in ipairs(columns) do
  read_columns[i] = read(column, with_sets, limit > 0 or since)
end
return { "read", head, read_columns, since and changes_since(since, tonumber(head[#head])) }
