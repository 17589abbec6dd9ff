-- What rows keep of their newest finished stages, for write.lua, after returned.lua.
--
-- KEYS[#KEYS - 1], values, is a hash. A small value shares the field "sNUMBER" with those of its neighbours, because a
-- field of its own takes more than 32 bytes: an array of ROWS_OF_A_FIELD values, false for none, from the row NUMBER *
-- ROWS_OF_A_FIELD on. A larger one has a field of its own, its row. The head has the number of fields in "values".

local function small_field(row)
  return "s" .. math.floor(row / ROWS_OF_A_FIELD), row % ROWS_OF_A_FIELD + 1
end

-- Stores or removes the small value of a row; returns by how many the number of fields has changed.
local function put_small(key, row, value)
  local field, at = small_field(row)
  local packed = redis.call("HGET", key, field)
  local values = packed and cmsgpack.unpack(packed) or {}
  if not (value or values[at]) then
    return 0
  end
  for i = #values + 1, at do
    values[i] = false
  end
  values[at] = value
  while #values > 0 and not values[#values] do
    values[#values] = nil
  end
  if #values == 0 then
    return -redis.call("HDEL", key, field)
  end
  return redis.call("HSET", key, field, cmsgpack.pack(values))
end

-- Stores or, if it is empty, removes what a row keeps of the stage.
local function put_value(outbox, row, value)
  local key, is_small = KEYS[#KEYS - 1], value ~= "" and #value <= MOST_SHARED_BYTES
  local change = put_small(key, tonumber(row), is_small and value)
  if value == "" or is_small then
    change = change - redis.call("HDEL", key, row)
  else
    change = change + redis.call("HSET", key, row, value)
  end
  if change ~= 0 then
    redis.call("HSET", KEYS[1], "values", (outbox.values or 0) + change)
  end
end
