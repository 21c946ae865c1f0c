-- Raises what each running request may use to new totals; all or nothing. Needs common.lua in front.
-- Each: id, owner, key, tokens, cost, limits of the owner, limits of the key
-- Reply: "ok", "no now_us refusal...", "unknown" or "lost".
local function extend(id, owner, key, to_tokens, to_cost, owner_limits, key_limits)
  local request = request_of(call('GET', PREFIX .. 'r:' .. id))
  if not request then return 'unknown' end
  local subjects = subjects_of(owner, key)
  local tokens = math.max(to_tokens - request.tokens, 0)
  local cost = math.max(to_cost - request.cost, 0)
  local function has_window(of) return string.find(request.windows, of.letter, 1, true) end

  for _, of in ipairs(subjects) do
    local limits = limits_of(of.kind == 'user' and owner_limits or key_limits)
    check_budgets(of, limits, budget_of(of, request.day), tokens, cost)
    if has_window(of) and limits.tokens then check_tokens(of, limits.tokens, window_of(of), tokens) end
  end
  if #refusals > 0 then return refused() end

  for _, of in ipairs(subjects) do
    charge_budget(budget_of(of, request.day), tokens, cost)
    if has_window(of) then charge_window(window_of(of), bucket, tokens) end
  end
  request.tokens, request.cost = request.tokens + tokens, request.cost + cost
  if request.windows ~= '-' then table.insert(request.charges, { at = bucket, amount = tokens }) end
  call('SET', PREFIX .. 'r:' .. id, request_text(request), 'EX', KEEP_REQUEST_S)
  return 'ok'
end

return finish(extend, function() end)
