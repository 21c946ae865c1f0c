-- Makes Redis agree with what the ledger says about one task. Needs tasks_common.lua in front.
-- ARGV: id, "queued", "held" or "closed", kind, priority, owner, delivery, order, milliseconds until it may be tried or the lease
-- ends, 1 if it is to stop, base of its events' numbers
-- Reply: "ok" or "lost".
local id, state, wait_ms = ARGV[1], ARGV[2], tonumber(ARGV[8])
local task = {
  id = id, kind = ARGV[3], priority = tonumber(ARGV[4]), owner = ARGV[5], delivery = tonumber(ARGV[6]), order = ARGV[7],
}
local key, known = PREFIX .. 't:' .. id, read_task(id)

-- 1) take it from where it is; a running lease stays as it is
if known then dequeue(known) end
redis.call('ZREM', PREFIX .. 'delayed', id)
local keeps_lease = state == 'held' and known and known.delivery == task.delivery
if not keeps_lease then redis.call('ZREM', PREFIX .. 'leases', id) end
if state == 'closed' then
  redis.call('DEL', key)
  redis.call('EXPIRE', PREFIX .. 'e:' .. id, KEEP_CLOSED_S)
  return 'ok'
end

-- 2) put it where it belongs
redis.call('HSET', key, 'kind', task.kind, 'priority', task.priority, 'owner', task.owner,
  'delivery', task.delivery, 'order', task.order, 'cancel', ARGV[9])
redis.call('HSETNX', key, 'base', ARGV[10])
if not keeps_lease then redis.call('HDEL', key, 'beat') end
if state == 'held' then
  redis.call('ZADD', PREFIX .. 'leases', 'NX', now_ms + wait_ms, id)
elseif wait_ms > 0 then
  redis.call('ZADD', PREFIX .. 'delayed', now_ms + wait_ms, id)
else
  enqueue(task)
end
return 'ok'
