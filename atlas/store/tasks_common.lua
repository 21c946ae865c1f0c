-- What the scripts of the task journal share. Python puts `local PREFIX, ... = ...` in front. Commands of Redis 7.0 only.
--
-- All of this can be made again from the ledger, except events. P is a priority, KIND what workers ask for; times are the server's.
--   ready            run id of the Redis that was filled; without it nothing here can be trusted
--   t:ID             hash: an open task; `order` it waits in, the `delivery` it has or had, `beat` once its worker was heard of,
--                    `cancel` 1 when it is to stop, `base` above which its events are numbered
--   leases, delayed  sorted sets: tasks by when their lease ends, or by when they may be tried again; milliseconds
--   q:KIND:P:OWNER   sorted set: an owner's waiting tasks, the oldest first
--   n:KIND:P         sorted set: owners with waiting tasks, by virtual time
--   g:KIND:P         sorted set: owners without, whose virtual time is still ahead of their class
--   c:KIND           hash: of each class `passP` and the virtual time `vP` of its owners; the virtual time `now` of classes
--   e:ID             stream: events of a task; kept for a while after it has closed
--
-- Who is next: start-time fair queuing, twice (Goyal, Vin, Cheng 1996). Each class (priority) has a pass, and the lowest is served;
-- serving moves it on by the stride of the class, so that where all wait, they share 8 : 4 : 1. A class that begins to wait starts one stride
-- behind the class that is being served: what waits grows older by one with each lease that goes to another class, and a p2 is
-- served after at most eight of p0 before it, twelve with p1. Within a class owners take turns by the same rule, all with stride 1.
local STRIDES = { [0] = 1, [1] = 2, [2] = 8 }

if redis.call('EXISTS', PREFIX .. 'ready') == 0 then return 'lost' end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local function owners_key(kind, priority) return PREFIX .. 'n:' .. kind .. ':' .. priority end
local function idle_key(kind, priority) return PREFIX .. 'g:' .. kind .. ':' .. priority end
local function classes_key(kind) return PREFIX .. 'c:' .. kind end
local function queue_key(kind, priority, owner) return PREFIX .. 'q:' .. kind .. ':' .. priority .. ':' .. owner end

local function read_task(id)
  local fields = redis.call('HMGET', PREFIX .. 't:' .. id, 'kind', 'priority', 'owner', 'delivery', 'order')
  if not fields[1] then return nil end
  return {
    id = id, kind = fields[1], priority = tonumber(fields[2]), owner = fields[3],
    delivery = tonumber(fields[4]), order = fields[5],
  }
end

local function number_in(key, field, default)
  return tonumber(redis.call('HGET', key, field) or default)
end

local function wake_class(task)
  local classes, stride = classes_key(task.kind), STRIDES[task.priority]
  local pass = number_in(classes, 'pass' .. task.priority, 0)
  redis.call('HSET', classes, 'pass' .. task.priority, math.max(pass, number_in(classes, 'now', 0) + stride))
end

local function enqueue(task)
  local owners, idle = owners_key(task.kind, task.priority), idle_key(task.kind, task.priority)
  if redis.call('EXISTS', owners) == 0 then wake_class(task) end
  if not redis.call('ZSCORE', owners, task.owner) then
    local own = tonumber(redis.call('ZSCORE', idle, task.owner) or 0)
    redis.call('ZREM', idle, task.owner)
    redis.call('ZADD', owners, math.max(own, number_in(classes_key(task.kind), 'v' .. task.priority, 0)), task.owner)
  end
  redis.call('ZADD', queue_key(task.kind, task.priority, task.owner), task.order, task.id)
end

-- Takes a task out of its queue, and its owner out of the turns if that was the last.
local function dequeue(task)
  local queue, owners = queue_key(task.kind, task.priority, task.owner), owners_key(task.kind, task.priority)
  if redis.call('ZREM', queue, task.id) == 0 or redis.call('EXISTS', queue) == 1 then return end
  redis.call('ZADD', idle_key(task.kind, task.priority), redis.call('ZSCORE', owners, task.owner), task.owner)
  redis.call('ZREM', owners, task.owner)
end
