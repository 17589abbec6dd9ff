-- Replaces cells of one column by their content in a later schema, each if it is unchanged since it was read. Adds
-- nothing to the stream.
--
-- KEYS     1 head, 2 tallies, 3 and 4 not used, 5 cells, 6 low (see common.lua)
-- ARGV[1]  incarnation
-- ARGV[2]  tag
-- ARGV[3]  for each cell: its field, whether it counts in the column, whether it counts in the job ("1" or ""), the
--          packed cell that was read, and its replacement ...
-- Returns {"gone"}, or {"rewritten", the number of replaced cells}.

local job = open_job(ARGV[1])
if not job then
  return { "gone" }
end
local packed = redis.call("HGET", KEYS[2], ARGV[2])
local tally = packed and cmsgpack.unpack(packed)
if not packed and ARGV[4] == "1" then
  raise_evicted(KEYS[2])
end
local replaced = 0
for i = 3, #ARGV, 5 do
  local field, in_column, in_job, before, after = unpack(ARGV, i, i + 4)
  if redis.call("HGET", KEYS[5], field) == before then
    redis.call("HSET", KEYS[5], field, after)
    if in_column == "1" then
      local place = { counts = in_job == "1", row = field, low = KEYS[6] }
      local new = cmsgpack.unpack(after)
      count(job, place, tally, cmsgpack.unpack(before), new)
      if new[STATUS] < 0 then
        redis.call("ZADD", place.low, score_of(new), member_of(place))
      end
    end
    replaced = replaced + 1
  end
end
if tally and cmsgpack.pack(tally) ~= packed then
  redis.call("HSET", KEYS[2], ARGV[2], cmsgpack.pack(tally))
  redis.call("HSET", KEYS[1], "total", cmsgpack.pack(total_of(job)))
end
return { "rewritten", replaced }
