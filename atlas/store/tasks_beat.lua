-- Prolongs a lease. Needs tasks_common.lua in front.
-- ARGV: id, delivery, length of the lease in milliseconds
-- Reply: "held" or "cancelled", each with 1 behind it the first time and 0 later; "unknown" or "lost".
local id, key = ARGV[1], PREFIX .. 't:' .. ARGV[1]
local fields = redis.call('HMGET', key, 'delivery', 'cancel', 'beat')
if fields[1] ~= ARGV[2] or not redis.call('ZSCORE', PREFIX .. 'leases', id) then return 'unknown' end
redis.call('ZADD', PREFIX .. 'leases', now_ms + tonumber(ARGV[3]), id)
if not fields[3] then redis.call('HSET', key, 'beat', 1) end
return (fields[2] == '1' and 'cancelled ' or 'held ') .. (fields[3] and '0' or '1')
