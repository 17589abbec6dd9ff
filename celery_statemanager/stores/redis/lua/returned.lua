-- The rows of a job that were returned to its outbox (OutboxState.returned), after evicted.lua.
--
-- The head has these fields: window, the maximum number of rows in flight, "none" without a limit, missing for a job
-- without messages; paused, present if the job is paused; claimed, the number of claimed rows; returned, the number of
-- bits that are set in the bitmap; values, see row_values.lua; and the claims, see claiming.lua.
--
-- KEYS[#KEYS - 1]  values    see row_values.lua
-- KEYS[#KEYS]      returned  bitmap: one bit per row for those that have begun, filled up to whole bytes, and then one
--                            bit per row for those that wait; so the first bit that is set is the row to claim next

-- Reads the fields of the head. Called before the first write, because it checks that the bitmap was not evicted.
local function read_outbox()
  local head = redis.call("HMGET", KEYS[1], "window", "claimed", "num_tasks", "returned", "values")
  local returned = tonumber(head[4] or 0)
  if returned > 0 and redis.call("EXISTS", KEYS[#KEYS]) == 0 then
    raise_evicted(KEYS[#KEYS])
  end
  return {
    owns_messages = head[1], window = tonumber(head[1]), claimed = tonumber(head[2] or 0), returned = returned,
    num_tasks = tonumber(head[3]), first_waiting = math.ceil(head[3] / 8) * 8, values = head[5],
  }
end

local function set_returned(outbox, position, bit)
  outbox.is_changed = true
  if redis.call("SETBIT", KEYS[#KEYS], position, bit) ~= bit then
    outbox.returned = outbox.returned + 2 * bit - 1
  end
end

-- Removes a row from the returned rows.
local function remove_returned(outbox, row)
  if outbox.returned > 0 then
    for _, position in ipairs({ row, outbox.first_waiting + row }) do
      if redis.call("GETBIT", KEYS[#KEYS], position) == 1 then
        set_returned(outbox, position, 0)
      end
    end
  end
end

-- Stores the number of returned rows. Follows every change of the bitmap.
local function save_returned(outbox)
  if outbox.is_changed then
    redis.call("HSET", KEYS[1], "returned", outbox.returned)
  end
  if outbox.is_changed and outbox.returned == 0 then
    redis.call("DEL", KEYS[#KEYS])
  end
end

-- Returns a row to the outbox (steps._give_back).
local function give_back(outbox, place, waits)
  if outbox.owns_messages and not place.of_callback then
    local row = tonumber(place.row)
    remove_returned(outbox, row)
    set_returned(outbox, waits and outbox.first_waiting + row or row, 1)
    save_returned(outbox)
  end
end
