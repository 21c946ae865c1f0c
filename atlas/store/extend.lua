-- Raises what a running request may use to new totals; all or nothing. Needs common.lua in front.
-- ARGV: id, owner, key, tokens, cost, limits of the owner, limits of the key
-- Reply: "ok", "no now_us refusal...", "unknown" or "lost".
local id = ARGV[1]
local request = read_request(id)
if not request then return 'unknown' end

local subjects = subjects_of(ARGV[2], ARGV[3], ARGV[6], ARGV[7])
local tokens = math.max(tonumber(ARGV[4]) - request.tokens, 0)
local cost = math.max(tonumber(ARGV[5]) - request.cost, 0)

for _, of in ipairs(subjects) do
  of.budget = open_budget(of.name, request.day)
  check_budgets(of, of.budget, tokens, cost)
  if string.find(request.windows, string.sub(of.kind, 1, 1), 1, true) then
    of.window = open_window(of.name)
    if of.tokens then check_tokens(of, of.window, tokens) end
  end
end
if #refusals > 0 then return string.format('no %.0f ', now_us) .. table.concat(refusals, ' ') end

for _, of in ipairs(subjects) do
  charge_budget(of.budget, tokens, cost)
  if of.window then charge_window(of.window, bucket, tokens) end
end
request.tokens, request.cost = request.tokens + tokens, request.cost + cost
if request.windows ~= '-' then table.insert(request.charges, { at = bucket, amount = tokens }) end
write_request(id, request)
return 'ok'
