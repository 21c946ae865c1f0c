-- Hands out the next task of a kind. Needs tasks_common.lua in front.
-- ARGV: kind, length of the lease in milliseconds
-- Reply: "task id delivery", "none milliseconds until a delayed task is due" (-1: there is none) or "lost".
local kind, lease_ms = ARGV[1], tonumber(ARGV[2])

-- 1) what has become due
for _, id in ipairs(redis.call('ZRANGEBYSCORE', PREFIX .. 'delayed', '-inf', now_ms, 'LIMIT', 0, 100)) do
  redis.call('ZREM', PREFIX .. 'delayed', id)
  enqueue(read_task(id))
end

-- 2) the class with the lowest pass
local classes, priority, pass = classes_key(kind), nil, nil
for candidate = 0, 2 do
  if redis.call('EXISTS', owners_key(kind, candidate)) == 1 then
    local its_pass = number_in(classes, 'pass' .. candidate, STRIDES[candidate])
    if not pass or its_pass < pass then priority, pass = candidate, its_pass end
  end
end
if not priority then
  local due = redis.call('ZRANGE', PREFIX .. 'delayed', 0, 0, 'WITHSCORES')[2]
  return string.format('none %.0f', due and math.max(due - now_ms, 0) or -1)
end

-- 3) in it, the owner whose turn it is, and the oldest of that owner
local owners = owners_key(kind, priority)
local next_owner = redis.call('ZRANGE', owners, 0, 0, 'WITHSCORES')
local owner, turn = next_owner[1], tonumber(next_owner[2])
local task = read_task(redis.call('ZRANGE', queue_key(kind, priority, owner), 0, 0)[1])

-- 4) move the virtual times on, and the task to its worker
redis.call('HSET', classes, 'now', pass, 'pass' .. priority, pass + STRIDES[priority], 'v' .. priority, turn)
redis.call('ZADD', owners, turn + 1, owner)
redis.call('ZREMRANGEBYSCORE', idle_key(kind, priority), '-inf', turn)
dequeue(task)
redis.call('HSET', PREFIX .. 't:' .. task.id, 'delivery', task.delivery + 1)
redis.call('HDEL', PREFIX .. 't:' .. task.id, 'beat')
redis.call('ZADD', PREFIX .. 'leases', now_ms + lease_ms, task.id)
return string.format('task %s %.0f', task.id, task.delivery + 1)
