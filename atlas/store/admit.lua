-- Admits a request or says why not; all or nothing. Needs common.lua in front.
-- ARGV: id, owner, key, tokens, cost, limits of the owner, limits of the key
-- Reply: "ok now_us, then of the tightest request and token limit: limit left limit left, token_reset_us" (-1: none),
-- "no now_us refusal...", "duplicate" or "lost".
local id, tokens, cost = ARGV[1], tonumber(ARGV[4]), tonumber(ARGV[5])
local subjects = subjects_of(ARGV[2], ARGV[3], ARGV[6], ARGV[7])

local function check_requests(of)
  local key = PREFIX .. 'q:' .. of.name
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('(%.0f', now_us - WINDOW_US))
  local used = redis.call('ZCARD', key)
  of.requests_left = of.requests - used - 1
  if of.requests_left >= 0 then return end
  local last_to_leave = redis.call('ZRANGE', key, used - of.requests, used - of.requests, 'WITHSCORES')[2]
  refuse(of, 'requests_per_minute', of.requests, used, (last_to_leave or now_us) + WINDOW_US + 1 - now_us)
end

local function check_concurrency(of)
  local used = redis.call('SCARD', PREFIX .. 'c:' .. of.name)
  of.runs_nothing = used == 0
  if used >= of.concurrency then refuse(of, 'concurrency', of.concurrency, used, 0) end
end

local function charge(of)
  if of.requests then
    redis.call('ZADD', PREFIX .. 'q:' .. of.name, now_us, id)
    redis.call('PEXPIRE', PREFIX .. 'q:' .. of.name, KEEP_WINDOW_MS)
  end
  if of.concurrency then
    redis.call('SADD', PREFIX .. 'c:' .. of.name, id)
    if of.runs_nothing or of.budget.is_fresh then redis.call('EXPIRE', PREFIX .. 'c:' .. of.name, KEEP_REQUEST_S) end
  end
  if of.window then charge_window(of.window, bucket, tokens) end
  charge_budget(of.budget, tokens, cost)
end

local function tighter(best, limit, left)
  if best.limit >= 0 and best.left <= left then return best end
  return { limit = limit, left = left }
end

-- 1) check everything
for _, of in ipairs(subjects) do
  of.budget = open_budget(of.name, today)
  if of.tokens then of.window = open_window(of.name) end
  if of.requests then check_requests(of) end
  if of.window then check_tokens(of, of.window, tokens) end
  if of.concurrency then check_concurrency(of) end
  check_budgets(of, of.budget, tokens, cost)
end
if #refusals > 0 then return string.format('no %.0f ', now_us) .. table.concat(refusals, ' ') end

-- 2) take the id
local windows = ''
for _, of in ipairs(subjects) do
  if of.window then windows = windows .. string.sub(of.kind, 1, 1) end
end
local request = { tokens = tokens, cost = cost, day = today, windows = windows, charges = { { at = bucket, amount = tokens } } }
if windows == '' then request.windows, request.charges = '-', {} end
if not write_request(id, request, true) then return 'duplicate' end

-- 3) charge everything
local by_requests, by_tokens = { limit = -1, left = -1 }, { limit = -1, left = -1 }
for _, of in ipairs(subjects) do
  charge(of)
  if of.requests then by_requests = tighter(by_requests, of.requests, of.requests_left) end
  if of.window then by_tokens = tighter(by_tokens, of.tokens, of.tokens - of.window.sum) end
end
return string.format('ok %.0f %.0f %.0f %.0f %.0f %.0f', now_us, by_requests.limit, by_requests.left,
  by_tokens.limit, by_tokens.left, (bucket + BUCKETS + 1) * BUCKET_US - now_us)
