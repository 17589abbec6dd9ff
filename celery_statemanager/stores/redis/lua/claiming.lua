-- The claims of rows to publish (steps.claim), after common.lua and returned.lua.
--
-- The newest claim of each publisher is a field of the head, "claim:PUBLISHER": packed {time, time until which the
-- publisher counts as alive, ranges of rows}. Ranges are first row, last row, first row, last row ..., in any order.

-- Returns the claim of a publisher, {} if it has none.
local function claim_of(publisher)
  local packed = redis.call("HGET", KEYS[1], "claim:" .. publisher)
  return packed and cmsgpack.unpack(packed) or {}
end

local function store_claim(job, outbox, publisher, lease, ranges)
  local claim = { job.now, job.now + lease }
  for i, bound in ipairs(ranges) do -- unpack would fail for some thousand ranges
    claim[i + 2] = bound
  end
  redis.call("HSET", KEYS[1], "claimed", outbox.claimed, "claim:" .. publisher, cmsgpack.pack(claim))
end

-- Returns the ranges that were claimed at a time by the end of a cell, if there are any. Such claims have no lease.
local function claimed_at(moment)
  for _, field in ipairs(redis.call("HKEYS", KEYS[1])) do -- HGETALL would also read the plan, which may be large
    if string.sub(field, 1, 6) == "claim:" then
      local claim = cmsgpack.unpack(redis.call("HGET", KEYS[1], field))
      if claim[1] == moment and claim[2] == moment then
        table.remove(claim, 1)
        table.remove(claim, 1)
        return claim
      end
    end
  end
end

-- Returns rows to the outbox that are in the own claim of their publisher. Their bits have an offset in the bitmap.
local function return_claimed(outbox, own, ranges, offset)
  for i = 1, #ranges, 2 do
    for j = 3, #own, 2 do
      for row = math.max(ranges[i], own[j]), math.min(ranges[i + 1], own[j + 1]) do
        remove_returned(outbox, row)
        set_returned(outbox, offset + row, 1)
      end
    end
  end
end

-- Takes the first returned rows and appends them to ranges; returns their number.
local function take_returned(outbox, most, only_begun, ranges)
  local taken, byte = 0, 0
  while taken < most and outbox.returned > 0 do
    local position = redis.call("BITPOS", KEYS[#KEYS], 1, byte)
    if position < 0 or (only_begun and position >= outbox.first_waiting) then
      break
    end
    set_returned(outbox, position, 0)
    local row = position % outbox.first_waiting
    if row > 0 and ranges[#ranges] == row - 1 then
      ranges[#ranges] = row
    else
      ranges[#ranges + 1], ranges[#ranges + 2] = row, row
    end
    taken, byte = taken + 1, math.floor(position / 8)
  end
  return taken
end

-- Claims rows for a publisher. The request has the fields of a ClaimRequest; begun and waiting are the ranges that it
-- returns. Returns the claimed ranges, and the number of bounds of those that were claimed before; nil if the job has
-- nothing to claim.
local function claim(job, outbox, request)
  if not outbox.owns_messages or (job.settled and not request.drop_unclaimed) then
    return nil
  end
  local rows, room, held = {}, request.limit, job.cancelled_at or job.paused
  for _, name in ipairs(request.dead) do
    local taken_over = claim_of(name)
    for i = 3, #taken_over do
      rows[#rows + 1] = taken_over[i]
    end
  end
  if request.begun[1] or request.waiting[1] then
    local own = claim_of(request.publisher)
    return_claimed(outbox, own, request.begun, 0)
    return_claimed(outbox, own, request.waiting, outbox.first_waiting)
  end
  for i = 1, outbox.returned > 0 and #rows or 0, 2 do
    for row = rows[i], rows[i + 1] do
      remove_returned(outbox, row)
    end
  end
  if outbox.window and not job.cancelled_at then
    local in_flight = outbox.claimed - (total_of(job)[N_ROWS] or 0) - outbox.returned
    room = math.max(0, math.min(room, outbox.window - in_flight))
  end
  local first = outbox.claimed
  local last = math.min(first + room - take_returned(outbox, room, held, rows), outbox.num_tasks) - 1
  local again = #rows
  if not held and last >= first then
    rows[#rows + 1], rows[#rows + 2], outbox.claimed = first, last, last + 1
  end
  if job.cancelled_at and request.drop_unclaimed then
    outbox.claimed = outbox.num_tasks
    redis.call("HSET", KEYS[1], "claimed", outbox.claimed)
  end
  if rows[1] then
    store_claim(job, outbox, request.publisher, request.lease, rows)
  else
    redis.call("HDEL", KEYS[1], "claim:" .. request.publisher)
  end
  for _, names in ipairs({ request.dead, request.ended }) do
    for _, name in ipairs(names) do
      if name ~= request.publisher then
        redis.call("HDEL", KEYS[1], "claim:" .. name)
      end
    end
  end
  save_returned(outbox)
  return rows, again
end
