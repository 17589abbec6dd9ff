-- What rows keep of their newest finished stages, for write.lua, after returned.lua.
--
-- KEYS[#KEYS - 1], values, is a hash. A small value shares the field "sNUMBER" with those of its neighbours, because a
-- field of its own takes more than 32 bytes: an array of ROWS_OF_A_FIELD values, false for none, from the row NUMBER *
-- ROWS_OF_A_FIELD on. A larger value has a field of its own, its row, and true in the array. The head has the number of
-- fields in "values".

-- Sets an element of an array of values; returns by how many the number of fields has changed.
local function put_shared(key, field, values, at, value)
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
  local key, field, at = KEYS[#KEYS - 1], "s" .. math.floor(row / ROWS_OF_A_FIELD), row % ROWS_OF_A_FIELD + 1
  local packed, change = redis.call("HGET", key, field), 0
  local values = packed and cmsgpack.unpack(packed) or {}
  local old, new = values[at] or false, value ~= "" and value
  if #value > MOST_SHARED_BYTES then
    new, change = true, redis.call("HSET", key, row, value)
  elseif old == true then
    change = -redis.call("HDEL", key, row)
  end
  if new ~= old then
    change = change + put_shared(key, field, values, at, new)
  end
  if change ~= 0 then
    redis.call("HSET", KEYS[1], "values", (outbox.values or 0) + change)
  end
end
