-- What admit, extend and settle share. Python puts `local PREFIX, WINDOW_US = ...` in front. Commands of Redis 7.0 only.
--
-- One run serves many requests, in order, each as if it had the run to itself: what is read of a subject is read once, what
-- changes is written once, by `finish`. Replies are lines, one a request; "lost" alone means that nothing was done.
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
local call, format = redis.call, string.format

if call('EXISTS', PREFIX .. 'ready') == 0 then return 'lost' end

local time = call('TIME')
local now_us = time[1] * 1000000 + time[2]
local today = math.floor(time[1] / 86400)
local bucket = math.floor(now_us / BUCKET_US)

-- Limits travel as one text, in the order of `Limits`; "-" is none.
local limits_by_text = {}
local function limits_of(text)
  local found = limits_by_text[text]
  if found then return found end
  local values = {}
  for limit in string.gmatch(text, '[^,]+') do values[#values + 1] = tonumber(limit) or false end
  found = { requests = values[1], tokens = values[2], concurrency = values[3], budgets = {
    { name = 'tokens_per_day', limit = values[4] }, { name = 'tokens_per_month', limit = values[5] },
    { name = 'cost_per_day', limit = values[6] }, { name = 'cost_per_month', limit = values[7] } } }
  limits_by_text[text] = found
  return found
end

-- A user or a key, with what was read of it and is to be written.
local known, in_order = {}, {}
local function subject(kind, id)
  local name = kind .. ':' .. id
  local of = known[name]
  if not of then
    of = { kind = kind, letter = string.sub(kind, 1, 1), name = name, months = {} }
    known[name] = of
    in_order[#in_order + 1] = of
  end
  return of
end

local function subjects_of(owner, key)
  local found = {}
  if owner ~= '' then found[1] = subject('user', owner) end
  if key ~= '' then found[#found + 1] = subject('key', key) end
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
local months = {}

-- A token window without what has left it. It holds the running bucket and the BUCKETS before it, so that every stretch of
-- BUCKETS * BUCKET_US lies inside one. A clock that steps back goes on charging the last bucket. The loop is short: a key that
-- nobody charged for a little longer than the window has expired.
local function window_of(of)
  if of.window then return of.window end
  local key = PREFIX .. 'w:' .. of.name
  local state = call('HMGET', key, 'sum', 'last')
  local window = { key = key, sum = tonumber(state[1] or 0), last = tonumber(state[2] or bucket), gained = {} }
  bucket = math.max(bucket, window.last)
  window.is_fresh = not state[2] or bucket > window.last   -- nothing has been charged in this bucket yet
  for old = window.last - BUCKETS, bucket - BUCKETS - 1 do
    local amount = call('HGET', key, old)
    if amount then
      window.sum = window.sum - amount
      call('HDEL', key, old)
      window.is_changed = true
    end
  end
  window.last = bucket
  of.window = window
  return window
end

local function charge_window(window, at, amount)
  window.sum = window.sum + amount
  window.gained[at] = (window.gained[at] or 0) + amount
  window.is_changed, window.is_charged = true, true
end

local function write_window(window)
  if not window.is_changed then return end
  for at, amount in pairs(window.gained) do
    if amount ~= 0 then call('HINCRBY', window.key, at, amount) end
  end
  if not window.is_charged then return call('HSET', window.key, 'sum', window.sum) end
  call('HSET', window.key, 'sum', window.sum, 'last', window.last)
  if window.is_fresh then call('PEXPIRE', window.key, KEEP_WINDOW_MS) end
end

-- What is used of a subject's budgets, by the names of its limits; two days of one month share the month.
local function budget_of(of, day)
  local number = months[day] or month_of(day)
  months[day] = number
  local month = of.months[number]
  if not month then
    month = { key = PREFIX .. 'b:' .. of.name .. ':' .. number, days = {} }
    of.months[number] = month
  end
  local found = month.days[day]
  if not found then
    local used = call('HMGET', month.key, 't' .. day, 't', 'c' .. day, 'c')
    found = { tokens = tonumber(used[1] or 0), cost = tonumber(used[3] or 0), month = month }
    month.tokens, month.cost = month.tokens or tonumber(used[2] or 0), month.cost or tonumber(used[4] or 0)
    month.is_fresh = month.is_fresh or not used[1]   -- the first of the day
    month.days[day] = found
  end
  return found
end

local function charge_budget(budget, tokens, cost)
  local month = budget.month
  budget.tokens, budget.cost = budget.tokens + tokens, budget.cost + cost
  month.tokens, month.cost, month.is_changed = month.tokens + tokens, month.cost + cost, true
end

local function write_month(month)
  if not month.is_changed then return end
  for day, used in pairs(month.days) do
    call('HSET', month.key, 't' .. day, used.tokens, 't', month.tokens, 'c' .. day, used.cost, 'c', month.cost)
  end
  if month.is_fresh then call('EXPIRE', month.key, KEEP_BUDGET_S) end
end

-- Why nothing is admitted: "whose limit value used wait_us" for each limit in the way.
local refusals = {}
local function refuse(of, limit, value, used, wait_us)
  refusals[#refusals + 1] = format('%s %s %d %d %d', of.kind, limit, value, used, wait_us)
end

-- The line that says so, and nothing against the next request.
local function refused()
  local line = format('no %d ', now_us) .. table.concat(refusals, ' ')
  refusals = {}
  return line
end

local function amounts_in(window)
  local amounts, fields = {}, call('HGETALL', window.key)
  for i = 1, #fields, 2 do
    local at = tonumber(fields[i])
    if at then amounts[at] = tonumber(fields[i + 1]) end
  end
  for at, amount in pairs(window.gained) do amounts[at] = (amounts[at] or 0) + amount end
  return amounts
end

local function check_tokens(of, limit, window, amount)
  local excess = window.sum + amount - limit
  if excess <= 0 then return end
  local amounts, order = amounts_in(window), {}
  for at in pairs(amounts) do order[#order + 1] = at end
  table.sort(order)
  local wait_us = 0
  for _, at in ipairs(order) do
    if excess <= 0 then break end
    excess = excess - amounts[at]
    wait_us = math.ceil((at + BUCKETS + 1) * BUCKET_US - now_us)
  end
  refuse(of, 'tokens_per_minute', limit, window.sum, wait_us)
end

local function check_budgets(of, limits, budget, tokens, cost)
  for i, entry in ipairs(limits.budgets) do
    local limit, amount = entry.limit, i > 2 and cost or tokens
    if limit and amount > 0 then
      local period = i % 2 == 1 and budget or budget.month
      local used = i > 2 and period.cost or period.tokens
      if used + amount > limit then refuse(of, entry.name, limit, used, 0) end
    end
  end
end

-- r:ID is "tokens cost day names bucket=tokens,bucket=tokens": totals charged, the budget's day, the token windows charged
-- (u, k, uk or -), and the part of the tokens that is still in them.
local function request_of(text)
  if not text or text == 'ended' then return nil end
  local tokens, cost, day, windows, at, amount, more = string.match(text, '^(%d+) (%d+) (%d+) (%S+) (%d*)=?(%d*)(.*)$')
  local charges = {}
  if at ~= '' then charges[1] = { at = tonumber(at), amount = tonumber(amount) } end
  if more ~= '' then
    for later, part in string.gmatch(more, '(%d+)=(%d+)') do
      charges[#charges + 1] = { at = tonumber(later), amount = tonumber(part) }
    end
  end
  return { tokens = tonumber(tokens), cost = tonumber(cost), day = tonumber(day), windows = windows, charges = charges }
end

-- Leaves a mark, by which a rebuild sees that the request is in the windows, and a late admission that nobody waits for it.
local function end_request(id)
  call('SET', PREFIX .. 'r:' .. id, 'ended', 'PX', KEEP_WINDOW_MS)
end

local function request_text(request)
  local charges = {}
  for _, charge in ipairs(request.charges) do
    if charge.amount > 0 and charge.at >= bucket - BUCKETS then
      charges[#charges + 1] = format('%d=%d', charge.at, charge.amount)
    end
  end
  local text = format('%d %d %d %s ', request.tokens, request.cost, request.day, request.windows)
  return text .. table.concat(charges, ',')
end

-- Serves every request: `serve` is called with what each of them says. Then writes what has changed. All they say is one
-- argument, in MessagePack: made, sent and taken apart with a call for each value, it cost more than what is done with it.
local function finish(serve, write)
  local lines = {}
  for i, asked in ipairs(cmsgpack.unpack(ARGV[1])) do lines[i] = serve(unpack(asked)) end
  for _, of in ipairs(in_order) do
    write(of)
    if of.window then write_window(of.window) end
    for _, month in pairs(of.months) do write_month(month) end
  end
  return table.concat(lines, '\n')
end
