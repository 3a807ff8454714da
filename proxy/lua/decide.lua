-- Decides on one request: gateway open, credentials, device header, client's address, scope, device claim, limits, in
-- this order. Nothing is claimed or counted unless every earlier question was answered with yes, and a token without
-- a rule is asked nothing about it.
-- KEYS: 1 credential, 2 generation, 3 gate.
-- ARGV: 1 device, 2 its state (0 well formed, 1 missing, 2 malformed), 3 scopes that open the path as ",a,b,"
--       ("?" when the path is ambiguous), 4 rate limit of tokens without their own, 5 its window in ms, 6 device idle
--       time in ms, 7 key prefix, 8 "1" to admit, "0" to look at the credentials only, "2" to look whether what is
--       open may go on, 9 the client's address as 32 hexadecimal digits ("" when unknown), 10 lifetime of a lease in
--       ms, 11 given when nobody will tell what became of the request.
-- Returns {outcome, generation, now, token, user, scope, activated, expires, duration, remaining, reset ms}, followed
-- by {own rate, packed limits, lease} for a token that has any; after a refusal {outcome, generation, now, token,
-- user}, followed by {rule, limit, reset ms[, window ms]} when a limit refused. The outcomes are
-- proxy.decisions.Outcome, the packed limits proxy.limits.Limits.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local g = redis.call('MGET', KEYS[2], KEYS[3])
local generation = g[1] or '0'
if g[2] then return {12, generation} end
local c = redis.call('HMGET', KEYS[1], 't', 'u', 's', 'd', 'a', 'e', 'o', 'x', 'n')
if c[9] and now >= tonumber(c[6]) then
  -- From its end on the secret means the successor that was bought, on the devices that held the token.
  local from = c[1]
  c[1], c[3], c[4], c[5], c[6] = string.match(c[9], '^(%S+) (%S+) (%d+) (%d+) (%d+)$')
  for _, kind in ipairs({'dev:', 'seat:'}) do
    local held = ARGV[7] .. kind .. from
    if redis.call('EXISTS', held) == 1 then redis.call('RENAMENX', held, ARGV[7] .. kind .. c[1]) end
  end
end
local token = c[1]
if not token then
  local refusal = redis.call('HGET', KEYS[1], 'r')
  if not refusal then
    if not g[1] then
      -- Its own for this look into PostgreSQL: a Redis that forgets everything meanwhile must not seem unchanged.
      generation = string.format('%.0f', t[1] * 1000000 + t[2])
      redis.call('SET', KEYS[2], generation, 'EX', 20)
    end
    return {1, generation}
  end
  if refusal == 'u' then return {2, generation} end
  if refusal == 'h' then return {20, generation} end
  return {3, generation}
end
local expires = c[6]
if expires ~= '' and now >= tonumber(expires) then return {4, generation, now, token, c[2]} end
if c[7] ~= '1' then return {5, generation, now, token, c[2]} end
local mode, kind, own, packed, networks = ARGV[8], c[8], false, false, false
local superuser = kind == '1' or kind == '3'
if kind == '2' or kind == '3' then
  local rules = redis.call('HMGET', KEYS[1], 'l', 'p', 'w')
  own, packed, networks = rules[1], rules[2], rules[3]
end
if mode == '0' then
  return {0, generation, now, token, c[2], c[3], c[5], expires, c[4], 0, 0, own or '', packed or '', ''}
end

if mode == '1' then
  if ARGV[2] == '1' then return {6, generation, now, token, c[2]} end
  if ARGV[2] == '2' then return {7, generation, now, token, c[2]} end
end
if networks then
  -- Pairs of first and last address; addresses of one length compare as text.
  local address, inside = ARGV[9], false
  if address ~= '' then
    for i = 1, #networks, 64 do
      if string.sub(networks, i, i + 31) <= address and address <= string.sub(networks, i + 32, i + 63) then
        inside = true
        break
      end
    end
  end
  if not inside then return {13, generation, now, token, c[2]} end
end
local scope = c[3]
if scope ~= 'full' then
  local open = ARGV[3]
  if open == '?' then return {8, generation, now, token, c[2]} end
  if not string.find(open, ',' .. scope .. ',', 1, true) then return {9, generation, now, token, c[2]} end
end

local prefix = ARGV[7]
local seats, concurrency, bounded, days, months = 1, 0, false, nil, nil
local day_requests, month_requests, day_bytes, month_bytes
if packed then
  seats, concurrency, day_requests, month_requests, day_bytes, month_bytes =
    string.match(packed, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+)')
  seats, concurrency = tonumber(seats), tonumber(concurrency)
  day_requests, month_requests = tonumber(day_requests), tonumber(month_requests)
  day_bytes, month_bytes = tonumber(day_bytes), tonumber(month_bytes)
  bounded = day_requests + month_requests + day_bytes + month_bytes > 0
  -- Of requests at once, bytes, and the bytes a second that stand last, nobody would tell.
  if ARGV[11] and (concurrency + day_bytes + month_bytes > 0 or string.sub(packed, -2) ~= ' 0') then
    return {16, generation, now, token, c[2]}
  end
end

local claim, holder
if mode == '1' then
  if seats == 1 then
    claim = prefix .. 'dev:' .. token
    holder = redis.call('GET', claim)
    if holder and holder ~= ARGV[1] then return {10, generation, now, token, c[2]} end
  else
    claim = prefix .. 'seat:' .. token
    redis.call('ZREMRANGEBYSCORE', claim, '-inf', now - ARGV[6])
    if not redis.call('ZSCORE', claim, ARGV[1]) and redis.call('ZCARD', claim) >= seats then
      return {10, generation, now, token, c[2]}
    end
  end
end

local remaining, reset = -1, 0
local window, stamp, width
if mode == '1' and not superuser then
  window = prefix .. 'rate:' .. token
  local limit = tonumber(own or ARGV[4])
  width = own and 60000 or tonumber(ARGV[5])
  -- Moments are kept modulo 2^31 ms: Redis stores them in 6 bytes instead of 10. One that seems to lie ahead was
  -- written before the clock was set back.
  stamp = now % 2147483648
  local oldest = redis.call('LINDEX', window, 0)
  local age = 0
  while oldest do
    age = (stamp - oldest) % 2147483648
    if age >= 1073741824 then age = 0 end
    if age < width then break end
    redis.call('LPOP', window)
    oldest = redis.call('LINDEX', window, 0)
  end
  local used = redis.call('LLEN', window)
  if used >= limit then
    if used > limit then
      -- The limit was lowered: room comes when as many have left as are too many.
      age = (stamp - redis.call('LINDEX', window, used - limit)) % 2147483648
      if age >= 1073741824 then age = 0 end
    end
    return {11, generation, now, token, c[2], 'rate', limit, width - age, width}
  end
  remaining = limit - used - 1
  reset = oldest and width - age or width
end

local leases
if mode == '1' and concurrency > 0 then
  leases = prefix .. 'lease:' .. token
  redis.call('ZREMRANGEBYSCORE', leases, '-inf', now)
  if redis.call('ZCARD', leases) >= concurrency then
    return {14, generation, now, token, c[2], 'concurrency', concurrency, 1000}
  end
end

if bounded then
  -- include calendar
  days, months = prefix .. 'day:' .. token .. ':' .. day, prefix .. 'month:' .. token .. ':' .. month
  local used = redis.call('HMGET', days, 'admitted', 'bytes_in', 'bytes_out')
  if mode == '1' and day_requests > 0 and (used[1] or 0) + 0 >= day_requests then
    return {15, generation, now, token, c[2], 'requests_per_day', day_requests, 0}
  end
  if day_bytes > 0 and (used[2] or 0) + (used[3] or 0) >= day_bytes then
    return {15, generation, now, token, c[2], 'bytes_per_day', day_bytes, 0}
  end
  used = redis.call('HMGET', months, 'admitted', 'bytes_in', 'bytes_out')
  if mode == '1' and month_requests > 0 and (used[1] or 0) + 0 >= month_requests then
    return {15, generation, now, token, c[2], 'requests_per_month', month_requests, 0}
  end
  if month_bytes > 0 and (used[2] or 0) + (used[3] or 0) >= month_bytes then
    return {15, generation, now, token, c[2], 'bytes_per_month', month_bytes, 0}
  end
end
if mode == '2' then
  return {0, generation, now, token, c[2], scope, c[5], expires, c[4], -1, 0, own or '', packed or '', ''}
end

if stamp then
  redis.call('RPUSH', window, stamp)
  redis.call('PEXPIRE', window, width)
end
local lease = ''
if leases then
  local id = t[1] * 1000000 + t[2]
  while redis.call('ZADD', leases, 'NX', now + ARGV[10], string.format('%.0f', id)) == 0 do id = id + 1 end
  redis.call('PEXPIRE', leases, ARGV[10])
  lease = string.format('%.0f', id)
end
if day_requests and day_requests + month_requests > 0 then
  redis.call('HINCRBY', days, 'admitted', 1)
  redis.call('HINCRBY', months, 'admitted', 1)
  redis.call('EXPIRE', days, 259200)
  redis.call('EXPIRE', months, 3456000)
end
if seats > 1 then
  redis.call('ZADD', claim, now, ARGV[1])
  redis.call('PEXPIRE', claim, ARGV[6])
elseif holder then
  redis.call('PEXPIRE', claim, ARGV[6])
else
  redis.call('SET', claim, ARGV[1], 'PX', ARGV[6])
end
if own or packed then
  return {0, generation, now, token, c[2], scope, c[5], expires, c[4], remaining, reset, own or '', packed or '', lease}
end
return {0, generation, now, token, c[2], scope, c[5], expires, c[4], remaining, reset}
