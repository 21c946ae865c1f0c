-- Names leases that have ended; they stay until the ledger has said what becomes of them. Needs tasks_common.lua in front.
-- Reply: "id delivery id delivery ...", empty if there are none, or "lost".
local found = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', PREFIX .. 'leases', '-inf', now_ms, 'LIMIT', 0, 100)) do
  found[#found + 1] = id .. ' ' .. (redis.call('HGET', PREFIX .. 't:' .. id, 'delivery') or '0')
end
return table.concat(found, ' ')
