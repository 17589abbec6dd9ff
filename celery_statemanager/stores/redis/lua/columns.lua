-- Reads a job and some of its columns as of one moment.
--
-- KEYS     1 head, 2 tallies, then for each column cells, low, written (see common.lua)
-- ARGV[1]  incarnation
-- ARGV[2]  how many tags the caller believes the job has seen; -1 if it need not know
-- ARGV[3]  "1" to give the sets of rows too
-- ARGV[4]  for each column its tag and its first expected row ...
-- Gives {"gone"}, {"tags", tag ...}, or {"read", values of HEAD, columns}; a column is {tally, {row, cell, ...}}:
-- the lowest of each kind, FINISHED only where nothing is lower; and with sets
-- {..., failed rows, running rows, rows of status 0, bitmap of the written ranks}.

local function rows_between(low, least, most)
  return redis.call("ZRANGEBYSCORE", low, least, most)
end

local function column(tag, first, cells, low, written)
  local lowest = { redis.call("ZRANGE", low, 0, 0)[1] or first }
  for _, zero in ipairs({ 0, 0.5 }) do
    lowest[#lowest + 1] = redis.call("ZRANGEBYSCORE", low, zero, zero, "LIMIT", 0, 1)[1]
  end
  local found = {}
  for _, row in ipairs(lowest) do
    found[#found + 1] = row
    found[#found + 1] = redis.call("HGET", cells, tonumber(row))
  end
  local tally = redis.call("HGET", KEYS[2], tag)
  if ARGV[3] ~= "1" then
    return { tally, found }
  end
  local failed, running, zero = rows_between(low, "-inf", "(0"), rows_between(low, 1, "+inf"), rows_between(low, 0, 0.5)
  return { tally, found, failed, running, zero, redis.call("GET", written) }
end

local head = redis.call("HMGET", KEYS[1], HEAD)
if head[1] ~= ARGV[1] then
  return { "gone" }
elseif ARGV[2] ~= "-1" and redis.call("HLEN", KEYS[2]) ~= tonumber(ARGV[2]) then
  return { "tags", unpack(redis.call("HKEYS", KEYS[2])) }
end
local columns = {}
for i = 4, #ARGV, 2 do
  local k = 3 * (i - 4) / 2 + 3
  columns[#columns + 1] = column(ARGV[i], ARGV[i + 1], KEYS[k], KEYS[k + 1], KEYS[k + 2])
end
return { "read", head, columns }
