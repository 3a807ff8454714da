-- Decides on one request: credentials, device header, scope, device claim, rate limit, in this order.
-- Nothing is claimed or counted unless every earlier question was answered with yes.
-- KEYS: 1 credential, 2 generation.
-- ARGV: 1 device, 2 its state (0 well formed, 1 missing, 2 malformed), 3 scopes that open the path as ",a,b,"
--       ("?" when the path is ambiguous), 4 rate limit, 5 its window in ms, 6 device idle time in ms,
--       7 key prefix, 8 "1" to admit, "0" to look at the credentials only.
-- Returns {outcome, generation, now, token, user, scope, activated, expires, duration, remaining, reset ms},
-- short after a refusal. The outcomes are proxy.validation.Outcome.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local c = redis.call('HMGET', KEYS[1], 't', 'u', 's', 'd', 'a', 'e', 'o', 'x', 'r', 'n')
local generation = redis.call('GET', KEYS[2]) or '0'
if c[10] and now >= tonumber(c[6]) then
  -- From its end on the secret means the successor that was bought, on the device that held the token.
  local held = ARGV[7] .. 'dev:' .. c[1]
  c[1], c[3], c[4], c[5], c[6] = string.match(c[10], '^(%S+) (%S+) (%d+) (%d+) (%d+)$')
  if redis.call('EXISTS', held) == 1 then redis.call('RENAMENX', held, ARGV[7] .. 'dev:' .. c[1]) end
end
local token = c[1]
if not token then
  if not c[9] then return {1, generation} end
  if c[9] == 'u' then return {2, generation} end
  if c[9] == 'h' then return {20, generation} end
  return {3, generation}
end
local expires = c[6]
if expires ~= '' and now >= tonumber(expires) then return {4, generation, now, token, c[2]} end
if c[7] ~= '1' then return {5, generation, now, token, c[2]} end
if ARGV[8] == '0' then return {0, generation, now, token, c[2], c[3], c[5], expires, c[4], 0, 0} end

if ARGV[2] == '1' then return {6, generation, now, token, c[2]} end
if ARGV[2] == '2' then return {7, generation, now, token, c[2]} end
local scope = c[3]
if scope ~= 'full' then
  local open = ARGV[3]
  if open == '?' then return {8, generation, now, token, c[2]} end
  if not string.find(open, ',' .. scope .. ',', 1, true) then return {9, generation, now, token, c[2]} end
end

local claim = ARGV[7] .. 'dev:' .. token
local holder = redis.call('GET', claim)
if holder and holder ~= ARGV[1] then return {10, generation, now, token, c[2]} end

local remaining, reset = -1, 0
if c[8] ~= '1' then
  local window = ARGV[7] .. 'rate:' .. token
  local limit, width = tonumber(ARGV[4]), tonumber(ARGV[5])
  local oldest = redis.call('LINDEX', window, 0)
  while oldest and now - oldest >= width do
    redis.call('LPOP', window)
    oldest = redis.call('LINDEX', window, 0)
  end
  local used = redis.call('LLEN', window)
  if used >= limit then
    return {11, generation, now, token, c[2], scope, c[5], expires, c[4], 0, width - (now - oldest)}
  end
  redis.call('RPUSH', window, now)
  redis.call('PEXPIRE', window, width)
  remaining = limit - used - 1
  reset = width - (now - (oldest or now))
end
if holder then
  redis.call('PEXPIRE', claim, ARGV[6])
else
  redis.call('SET', claim, ARGV[1], 'PX', ARGV[6])
end
return {0, generation, now, token, c[2], scope, c[5], expires, c[4], remaining, reset}
