-- Adds events to a task's stream. Needs tasks_common.lua in front.
-- ARGV: id, delivery, and of each event: "body" or "blob", the body or the blob's name
-- Reply: the last event's number, "unknown" (this delivery has no lease) or "lost".
local id, stream = ARGV[1], PREFIX .. 'e:' .. ARGV[1]
local fields = redis.call('HMGET', PREFIX .. 't:' .. id, 'delivery', 'base')
if fields[1] ~= ARGV[2] or not redis.call('ZSCORE', PREFIX .. 'leases', id) then return 'unknown' end
local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
local last_number = last and tonumber(string.match(last[1], '^%d+')) or 0
local number = math.max(last_number, tonumber(fields[2]))
for at = 3, #ARGV, 2 do
    number = number + 1
    local id = string.format('%.0f-0', number)
    redis.call('XADD', stream, 'MAXLEN', MAX_EVENTS, id, 'at', string.format('%.0f', now_ms), ARGV[at], ARGV[at + 1])
end
redis.call('EXPIRE', stream, KEEP_OPEN_S)
return string.format('%.0f', number)
