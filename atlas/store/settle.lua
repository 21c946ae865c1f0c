-- Ends a request: corrects what it was charged to what it used, in the same buckets and budgets. Needs common.lua in front.
-- ARGV: id, owner, key, tokens, cost, "settle" or "withdraw"
-- A withdrawn request counts nothing at all. Should its admission arrive only later, on a connection we have given up, its mark
-- refuses it.
-- Reply: "ok", "unknown" (nothing done) or "lost".
local id, is_withdrawn = ARGV[1], ARGV[6] == 'withdraw'
local request = read_request(id)
if not request then
  if is_withdrawn then end_request(id) end
  return 'unknown'
end

local subjects = subjects_of(ARGV[2], ARGV[3], '', '')
local tokens, cost = tonumber(ARGV[4]) - request.tokens, tonumber(ARGV[5]) - request.cost

-- Gives back from the newest bucket: what was used first stays where it was charged first.
local function give_back(window, amount)
  for i = #request.charges, 1, -1 do
    local charge = request.charges[i]
    local part = math.min(charge.amount, amount)
    if redis.call('HEXISTS', window.key, charge.at) == 1 then charge_window(window, charge.at, -part) end
    amount = amount - part
  end
end

for _, of in ipairs(subjects) do
  redis.call('SREM', PREFIX .. 'c:' .. of.name, id)
  if is_withdrawn then redis.call('ZREM', PREFIX .. 'q:' .. of.name, id) end
  if tokens ~= 0 or cost ~= 0 then charge_budget(open_budget(of.name, request.day), tokens, cost) end
  if string.find(request.windows, string.sub(of.kind, 1, 1), 1, true) then
    local window = open_window(of.name)
    if tokens > 0 then charge_window(window, bucket, tokens) end
    if tokens < 0 then give_back(window, -tokens) end
  end
end
end_request(id)
return 'ok'
