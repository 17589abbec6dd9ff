-- The claims of rows to publish (steps.claim), after common.lua.
--
-- The head has these fields: window, the maximum number of rows in flight, "none" without a limit, missing for a job
-- without messages; claimed, the number of claimed rows; and "claim:PUBLISHER", the newest claim of each publisher:
-- packed {time, time until which the publisher counts as alive, first row, last row, first row, last row ...}.

-- Returns the first row that was claimed at a time by the end of a row, and the row after the last one, if there are any.
-- The claims of the ends of rows have no lease.
local function claimed_at(moment)
  for _, field in ipairs(redis.call("HKEYS", KEYS[1])) do -- HGETALL would also read the plan, which may be large
    if string.sub(field, 1, 6) == "claim:" then
      local claim = cmsgpack.unpack(redis.call("HGET", KEYS[1], field))
      if claim[1] == moment and claim[2] == moment then
        return claim[3], claim[4] + 1
      end
    end
  end
end

-- Claims rows for a publisher, also those of dead publishers. With only_in_window, claims nothing if the number of rows
-- in flight is not limited.
-- Returns nil if the job has nothing to claim, or the numbers of rows that were claimed before, that are claimed now,
-- and that nobody has claimed, and the rows taken over: {first row, last row, ...}.
local function claim(job, publisher, limit, lease, dead, only_in_window)
  local head = redis.call("HMGET", KEYS[1], "window", "claimed", "num_tasks")
  local window, before, num_tasks = tonumber(head[1]), tonumber(head[2] or 0), tonumber(head[3])
  if not head[1] or job.cancelled_at or job.settled or (only_in_window and not window) then
    return nil
  end
  local doubtful, new = {}, { job.now, job.now + lease }
  for _, name in ipairs(dead) do
    local packed = redis.call("HGET", KEYS[1], "claim:" .. name)
    local rows = packed and cmsgpack.unpack(packed) or {}
    for i = 3, #rows do
      doubtful[#doubtful + 1], new[#new + 1] = rows[i], rows[i]
    end
  end
  local claimed = math.min(before + limit, num_tasks)
  if window then
    claimed = math.min(claimed, (total_of(job)[N_ROWS] or 0) + window)
  end
  if claimed > before then
    new[#new + 1], new[#new + 2] = before, claimed - 1
  else
    claimed = before
  end
  if #new > 2 then
    redis.call("HSET", KEYS[1], "claimed", claimed, "claim:" .. publisher, cmsgpack.pack(new))
  else
    redis.call("HDEL", KEYS[1], "claim:" .. publisher)
  end
  for _, name in ipairs(dead) do
    if name ~= publisher then
      redis.call("HDEL", KEYS[1], "claim:" .. name)
    end
  end
  return before, claimed, num_tasks - claimed, doubtful
end
