-- Lists a draft, or extends its lease.
--
-- KEYS[1]  drafts (zset: entry -> end of the lease, microseconds since the epoch)
-- ARGV     1 entry, 2 lease in microseconds

local time = redis.call("TIME")
redis.call("ZADD", KEYS[1], time[1] * 1000000 + time[2] + ARGV[2], ARGV[1])
