-- Detects keys that a script needs and the server has evicted. Each error is raised before the script's first write.

local function raise_evicted(key)
  error("statemanager:evicted " .. key)
end

-- Checks that a hash has the number of fields that the head stores. Heads of earlier releases do not store it.
local function check_size(hash, size)
  if size and redis.call("HLEN", hash) < tonumber(size) then
    raise_evicted(hash)
  end
end

-- Checks the keys of a column that has a tally: {cells, low, written}, see common.lua.
local function check_column(column, tally)
  local written = tally[N_WRITTEN] or 0
  if redis.call("EXISTS", column.cells) == 0 then
    raise_evicted(column.cells)
  elseif written > 0 and redis.call("EXISTS", column.written) == 0 then
    raise_evicted(column.written)
  elseif redis.call("ZCARD", column.low) < written - tally[N_FINISHED] then
    raise_evicted(column.low)
  end
end
