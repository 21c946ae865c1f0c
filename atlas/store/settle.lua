-- Ends each request: corrects what it was charged to what it used, in the same buckets and budgets. Needs common.lua in front.
-- Each: id, owner, key, tokens, cost, "settle" or "withdraw"
-- A withdrawn request counts nothing at all. Should its admission arrive only later, on a connection we have given up, its mark
-- refuses it.
-- Reply: "ok", "unknown" (nothing done) or "lost".

-- Whether a bucket is in the window still.
local function holds(window, at)
  window.held = window.held or {}
  if window.held[at] == nil then window.held[at] = call('HEXISTS', window.key, at) == 1 end
  return window.held[at]
end

-- Gives back from the newest bucket: what was used first stays where it was charged first.
local function give_back(window, charges, amount)
  for i = #charges, 1, -1 do
    local part = math.min(charges[i].amount, amount)
    if holds(window, charges[i].at) then charge_window(window, charges[i].at, -part) end
    amount = amount - part
  end
end

local function settle(id, owner, key, used_tokens, used_cost, how)
  local request = request_of(call('SET', PREFIX .. 'r:' .. id, 'ended', 'XX', 'GET', 'PX', KEEP_WINDOW_MS))
  if not request then
    if how == 'withdraw' then end_request(id) end
    return 'unknown'
  end
  local tokens, cost = used_tokens - request.tokens, used_cost - request.cost
  for _, of in ipairs(subjects_of(owner, key)) do
    of.ended = of.ended or {}
    of.ended[#of.ended + 1] = id
    if how == 'withdraw' then call('ZREM', PREFIX .. 'q:' .. of.name, id) end
    if tokens ~= 0 or cost ~= 0 then charge_budget(budget_of(of, request.day), tokens, cost) end
    if string.find(request.windows, of.letter, 1, true) then
      local window = window_of(of)
      if tokens > 0 then charge_window(window, bucket, tokens) end
      if tokens < 0 then give_back(window, request.charges, -tokens) end
    end
  end
  return 'ok'
end

local function write(of)
  if of.ended then call('SREM', PREFIX .. 'c:' .. of.name, unpack(of.ended)) end
end

return finish(settle, write)
