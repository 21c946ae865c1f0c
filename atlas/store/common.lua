-- What admit, extend and settle share. Python puts `local PREFIX, WINDOW_US = ...` in front. Commands of Redis 7.0 only.
--
-- NAME is user:ID or key:ID; all times are the server's.
--   ready          run id of the Redis that the counts were checked on; without it nothing here can be trusted
--   q:NAME         sorted set: when each request was admitted, in microseconds; as many members as the limit
--   w:NAME         hash: tokens charged per bucket, their `sum`, and the `last` bucket written; at most BUCKETS + 3 fields
--   c:NAME         set: ids of running requests; as many members as the limit
--   b:NAME:MONTH   hash: tokens and cost of the month (t, c) and of each of its days (tDAY, cDAY)
--   r:ID           what a running request has been charged, and where; 'ended' for a window after it has ended
local BUCKETS = 60
local BUCKET_US = WINDOW_US / BUCKETS
local KEEP_WINDOW_MS = math.ceil(WINDOW_US / 1000 * 1.1)
local KEEP_REQUEST_S = 2 * 86400   -- chosen: longer than any request runs
local KEEP_BUDGET_S = 40 * 86400

if redis.call('EXISTS', PREFIX .. 'ready') == 0 then return 'lost' end

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local today = math.floor(time[1] / 86400)
local bucket = math.floor(now_us / BUCKET_US)

-- Limits travel as one text, in the order of `Limits`; "-" is none.
local function subject(kind, id, text)
  local limits = {}
  for limit in string.gmatch(text, '[^,]+') do limits[#limits + 1] = tonumber(limit) or false end
  return {
    kind = kind, name = kind .. ':' .. id,
    requests = limits[1], tokens = limits[2], concurrency = limits[3],
    budgets = { tokens_per_day = limits[4], tokens_per_month = limits[5], cost_per_day = limits[6], cost_per_month = limits[7] },
  }
end

local function subjects_of(owner, key, owner_limits, key_limits)
  local found = {}
  if owner ~= '' then found[#found + 1] = subject('user', owner, owner_limits) end
  if key ~= '' then found[#found + 1] = subject('key', key, key_limits) end
  return found
end

-- Months since year 0 of a day since 1970-01-01: Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
local function month_of(day)
  local shifted = day + 719468   -- days since 0000-03-01; this calendar's years begin in March
  local era = math.floor(shifted / 146097)
  local of_era = shifted - era * 146097
  local year = math.floor(
    (of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524) - math.floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  return (era * 400 + year) * 12 + math.floor((5 * of_year + 2) / 153) + 2
end

-- A token window without what has left it. It holds the running bucket and the BUCKETS before it, so that every stretch of
-- BUCKETS * BUCKET_US lies inside one. A clock that steps back goes on charging the last bucket. The loop is short: a key that
-- nobody charged for a little longer than the window has expired.
local function open_window(name)
  local key = PREFIX .. 'w:' .. name
  local state = redis.call('HMGET', key, 'sum', 'last')
  local window = { key = key, sum = tonumber(state[1] or 0), last = tonumber(state[2] or bucket) }
  bucket = math.max(bucket, window.last)
  window.is_fresh = not state[2] or bucket > window.last   -- nothing has been charged in this bucket yet
  local left = 0
  for old = window.last - BUCKETS, bucket - BUCKETS - 1 do
    local amount = redis.call('HGET', key, old)
    if amount then
      left = left + amount
      redis.call('HDEL', key, old)
    end
  end
  if left > 0 then
    window.sum = window.sum - left
    redis.call('HSET', key, 'sum', window.sum)
  end
  window.last = bucket
  return window
end

local function charge_window(window, at, amount)
  window.sum = window.sum + amount
  redis.call('HINCRBY', window.key, at, amount)
  redis.call('HSET', window.key, 'sum', window.sum, 'last', window.last)
  if window.is_fresh then redis.call('PEXPIRE', window.key, KEEP_WINDOW_MS) end
end

local function open_budget(name, day)
  local key = PREFIX .. 'b:' .. name .. ':' .. month_of(day)
  local used = redis.call('HMGET', key, 't' .. day, 't', 'c' .. day, 'c')
  return {
    key = key, day = day, is_fresh = not used[1],   -- the first of the day
    tokens_per_day = tonumber(used[1] or 0), tokens_per_month = tonumber(used[2] or 0),
    cost_per_day = tonumber(used[3] or 0), cost_per_month = tonumber(used[4] or 0),
  }
end

local function charge_budget(budget, tokens, cost)
  redis.call('HSET', budget.key,
    't' .. budget.day, budget.tokens_per_day + tokens, 't', budget.tokens_per_month + tokens,
    'c' .. budget.day, budget.cost_per_day + cost, 'c', budget.cost_per_month + cost)
  if budget.is_fresh then redis.call('EXPIRE', budget.key, KEEP_BUDGET_S) end
end

-- Why nothing is admitted: "whose limit value used wait_us" for each limit in the way.
local refusals = {}
local function refuse(of, limit, value, used, wait_us)
  refusals[#refusals + 1] = string.format('%s %s %.0f %.0f %.0f', of.kind, limit, value, used, wait_us)
end

local function check_tokens(of, window, amount)
  local excess = window.sum + amount - of.tokens
  if excess <= 0 then return end
  local amounts, order = {}, {}
  local fields = redis.call('HGETALL', window.key)
  for i = 1, #fields, 2 do
    local at = tonumber(fields[i])
    if at then
      amounts[at] = tonumber(fields[i + 1])
      order[#order + 1] = at
    end
  end
  table.sort(order)
  local wait_us = 0
  for _, at in ipairs(order) do
    if excess <= 0 then break end
    excess = excess - amounts[at]
    wait_us = (at + BUCKETS + 1) * BUCKET_US - now_us
  end
  refuse(of, 'tokens_per_minute', of.tokens, window.sum, wait_us)
end

local function check_budgets(of, budget, tokens, cost)
  for name, limit in pairs(of.budgets) do
    local amount = string.sub(name, 1, 4) == 'cost' and cost or tokens
    if limit and amount > 0 and budget[name] + amount > limit then refuse(of, name, limit, budget[name], 0) end
  end
end

-- r:ID is "tokens cost day names bucket=tokens,bucket=tokens": totals charged, the budget's day, the token windows charged
-- (u, k, uk or -), and the part of the tokens that is still in them.
local function read_request(id)
  local text = redis.call('GET', PREFIX .. 'r:' .. id)
  if not text or text == 'ended' then return nil end
  local tokens, cost, day, windows, charges = string.match(text, '^(%d+) (%d+) (%d+) (%S+) (.*)$')
  local request = { tokens = tonumber(tokens), cost = tonumber(cost), day = tonumber(day), windows = windows, charges = {} }
  for at, amount in string.gmatch(charges, '(%d+)=(%d+)') do
    table.insert(request.charges, { at = tonumber(at), amount = tonumber(amount) })
  end
  return request
end

-- Leaves a mark, by which a rebuild sees that the request is in the windows, and a late admission that nobody waits for it.
local function end_request(id)
  redis.call('SET', PREFIX .. 'r:' .. id, 'ended', 'PX', KEEP_WINDOW_MS)
end

-- False if `only_new` and there is one already.
local function write_request(id, request, only_new)
  local charges = {}
  for _, charge in ipairs(request.charges) do
    if charge.amount > 0 and charge.at >= bucket - BUCKETS then
      charges[#charges + 1] = string.format('%.0f=%.0f', charge.at, charge.amount)
    end
  end
  local text = string.format('%.0f %.0f %.0f %s ', request.tokens, request.cost, request.day, request.windows)
  local key, value = PREFIX .. 'r:' .. id, text .. table.concat(charges, ',')
  if only_new then return redis.call('SET', key, value, 'EX', KEEP_REQUEST_S, 'NX') end
  return redis.call('SET', key, value, 'EX', KEEP_REQUEST_S)
end
