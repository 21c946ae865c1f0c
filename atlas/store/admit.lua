-- Admits each request or says why not; all or nothing. Needs common.lua in front.
-- Each: id, owner, key, tokens, cost, limits of the owner, limits of the key
-- Reply: "ok now_us, then of the tightest request and token limit: limit left limit left, token_reset_us" (-1: none),
-- "no now_us refusal...", "duplicate" or "lost".
local function num_requests(of)
  if not of.num_requests then
    local key = PREFIX .. 'q:' .. of.name
    call('ZREMRANGEBYSCORE', key, '-inf', format('(%d', now_us - WINDOW_US))
    of.num_requests, of.entered = call('ZCARD', key), {}
  end
  return of.num_requests
end

local function check_requests(of, limit)
  local used = num_requests(of)
  if used < limit then return end
  local at = used - limit   -- those of this run are behind it
  local last_to_leave = call('ZRANGE', PREFIX .. 'q:' .. of.name, at, at, 'WITHSCORES')[2]
  refuse(of, 'requests_per_minute', limit, used, (last_to_leave or now_us) + WINDOW_US + 1 - now_us)
end

local function check_concurrency(of, limit)
  if not of.num_running then
    of.num_running, of.started = call('SCARD', PREFIX .. 'c:' .. of.name), {}
    of.runs_nothing = of.num_running == 0
  end
  if of.num_running >= limit then refuse(of, 'concurrency', limit, of.num_running, 0) end
end

local function check(of, limits, tokens, cost)
  if limits.requests then check_requests(of, limits.requests) end
  if limits.tokens then check_tokens(of, limits.tokens, window_of(of), tokens) end
  if limits.concurrency then check_concurrency(of, limits.concurrency) end
  check_budgets(of, limits, budget_of(of, today), tokens, cost)
end

local function charge(of, limits, id, tokens, cost)
  if limits.requests then
    of.entered[#of.entered + 1], of.num_requests = id, of.num_requests + 1
  end
  if limits.concurrency then
    of.started[#of.started + 1], of.num_running = id, of.num_running + 1
  end
  if limits.tokens then charge_window(of.window, bucket, tokens) end
  charge_budget(budget_of(of, today), tokens, cost)
end

-- Takes the id; false if it is taken.
local function register(id, windows, tokens, cost)
  local charges = (windows == '-' or tokens == 0) and '' or format('%d=%d', bucket, tokens)
  local text = format('%d %d %d %s %s', tokens, cost, today, windows, charges)
  return call('SET', PREFIX .. 'r:' .. id, text, 'EX', KEEP_REQUEST_S, 'NX')
end

local function admit(id, owner, key, tokens, cost, owner_limits, key_limits)
  local subjects, limits, windows = subjects_of(owner, key), {}, ''
  for i, of in ipairs(subjects) do
    limits[i] = limits_of(of.kind == 'user' and owner_limits or key_limits)
    check(of, limits[i], tokens, cost)
    if limits[i].tokens then windows = windows .. of.letter end
  end
  if #refusals > 0 then return refused() end
  if not register(id, windows == '' and '-' or windows, tokens, cost) then return 'duplicate' end
  local request_limit, requests_left, token_limit, tokens_left = -1, -1, -1, -1
  for i, of in ipairs(subjects) do
    local own = limits[i]
    charge(of, own, id, tokens, cost)
    local left = own.requests and own.requests - of.num_requests
    if left and (request_limit < 0 or left < requests_left) then request_limit, requests_left = own.requests, left end
    left = own.tokens and own.tokens - of.window.sum
    if left and (token_limit < 0 or left < tokens_left) then token_limit, tokens_left = own.tokens, left end
  end
  return format('ok %d %d %d %d %d %d', now_us, request_limit, requests_left, token_limit, tokens_left,
    math.ceil((bucket + BUCKETS + 1) * BUCKET_US - now_us))
end

local function write(of)
  if of.entered and #of.entered > 0 then
    local members, key = {}, PREFIX .. 'q:' .. of.name
    for i, id in ipairs(of.entered) do members[2 * i - 1], members[2 * i] = now_us, id end
    call('ZADD', key, unpack(members))
    call('PEXPIRE', key, KEEP_WINDOW_MS)
  end
  if of.started and #of.started > 0 then
    local key = PREFIX .. 'c:' .. of.name
    call('SADD', key, unpack(of.started))
    if of.runs_nothing or budget_of(of, today).month.is_fresh then call('EXPIRE', key, KEEP_REQUEST_S) end
  end
end

return finish(admit, write)
