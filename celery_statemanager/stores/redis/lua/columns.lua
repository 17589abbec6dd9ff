-- Reads a job and some of its columns as of one moment.
--
-- KEYS     1 head, 2 tallies, 3 stream, then for each column cells, low, written (see common.lua)
-- ARGV[1]  incarnation
-- ARGV[2]  how many tags the caller believes the job has seen; -1 if it need not know
-- ARGV[3]  gives the sets of rows too where they have no more members than that, about; 0 for never
-- ARGV[4]  gives what changed since the change of that number too; "" for not
-- ARGV[5]  for each column its tag and its first expected row ...
-- Gives {"gone"}, {"tags", tag ...}, or {"read", values of HEAD, columns, changes}. A column is {tally, {row, cell, ...}}:
-- the lowest of each kind, FINISHED only where nothing is lower; and with sets
-- {..., failed rows, running rows, rows of status 0, bitmap of the written ranks, rows not run}. Changes are the address of each cell
-- that has changed and its score in low, nil where it has none; nil if the stream no longer says.

local columns = {}
for i = 5, #ARGV, 2 do
  local k = 4 + 3 * (i - 5) / 2
  columns[#columns + 1] = { tag = ARGV[i], first = ARGV[i + 1], cells = KEYS[k], low = KEYS[k + 1], written = KEYS[k + 2] }
end

local function rows_between(low, least, most)
  return redis.call("ZRANGEBYSCORE", low, least, most)
end

-- Gives the failed rows, and those that were not run.
local function negative_rows(low)
  local scored, failed, not_run = redis.call("ZRANGEBYSCORE", low, "-inf", "(0", "WITHSCORES"), {}, {}
  for i = 1, #scored, 2 do
    local rows = tonumber(scored[i + 1]) % 1 == 0 and failed or not_run
    rows[#rows + 1] = scored[i]
  end
  return failed, not_run
end

local function are_small(most)
  local size = 0
  for _, column in ipairs(columns) do
    size = size + redis.call("ZCARD", column.low) + redis.call("STRLEN", column.written) / 64
  end
  return size <= most
end

local function read(column, with_sets)
  local low = column.low
  local first = redis.call("ZRANGE", low, 0, 0, "WITHSCORES")
  local lowest, status = { first[1] or column.first }, math.floor(tonumber(first[2] or 0))
  for _, score in ipairs({ status + 0.5, 0, status < 0 and 0.5 or nil }) do
    lowest[#lowest + 1] = redis.call("ZRANGEBYSCORE", low, score, score, "LIMIT", 0, 1)[1]
  end
  local found = {}
  for _, row in ipairs(lowest) do
    found[#found + 1] = row
    found[#found + 1] = redis.call("HGET", column.cells, tonumber(row))
  end
  local tally = redis.call("HGET", KEYS[2], column.tag)
  if not with_sets then
    return { tally, found }
  end
  local failed, not_run = negative_rows(low)
  local running, zero = rows_between(low, 1, "+inf"), rows_between(low, 0, 0.5)
  return { tally, found, failed, running, zero, redis.call("GET", column.written), not_run }
end

local function changed(since, newest)
  local entries = redis.call("XRANGE", KEYS[3], string.format("%.0f-0", since + 1), "+")
  if #entries ~= newest - since then
    return false
  end
  local low, found, seen = {}, {}, {}
  for _, column in ipairs(columns) do
    low[column.tag] = column.low
  end
  for _, entry in ipairs(entries) do
    local address = entry[2][2]
    local row, tag = string.match(address, "^(%d+) (.*)$")
    if low[tag] and not seen[address] then
      seen[address] = true
      found[#found + 1] = address
      found[#found + 1] = redis.call("ZSCORE", low[tag], string.format("%07d", row))
    end
  end
  return found
end

local head = redis.call("HMGET", KEYS[1], HEAD)
if head[1] ~= ARGV[1] then
  return { "gone" }
elseif ARGV[2] ~= "-1" and redis.call("HLEN", KEYS[2]) ~= tonumber(ARGV[2]) then
  return { "tags", unpack(redis.call("HKEYS", KEYS[2])) }
end
local most, since, read_columns = tonumber(ARGV[3]), tonumber(ARGV[4]), {}
local with_sets = most > 0 and are_small(most)
for i, column in ipairs(columns) do
  read_columns[i] = read(column, with_sets)
end
return { "read", head, read_columns, since and changed(since, tonumber(head[#head])) }
