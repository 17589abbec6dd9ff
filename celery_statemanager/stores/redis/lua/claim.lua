-- Claims rows to publish. One step, one slot.
--
-- KEYS[1]  head (see claiming.lua)
-- ARGV[1]  incarnation
-- ARGV     2 publisher, 3 maximum number of rows that nobody has claimed, 4 lease in microseconds
-- ARGV[5]  dead publishers ...
-- Returns {"gone"}, {"none"} if the job has nothing to claim, or {"claimed", numbers of rows that were claimed before,
-- that are claimed now, and that nobody has claimed, {first row, last row, ...} of the rows taken over}.

local job = open_job(ARGV[1])
if not job then
  return { "gone" }
end
local dead = {}
for i = 5, #ARGV do
  dead[#dead + 1] = ARGV[i]
end
local before, claimed, left, doubtful = claim(job, ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), dead)
if not before then
  return { "none" }
end
return { "claimed", before, claimed, left, doubtful }
