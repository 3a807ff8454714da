-- What the workers know together about one server.
-- KEYS: 1 its hash: opens, until, trial, down (times in ms of Redis's clock), error, error_at.
-- ARGV: 1 what is told:
--   open     2 first back-off in ms, 3 longest, 4 random 0..1, 5 error, 6 channel, 7 message. Returns {ms left, openings in a row}.
--            Whoever comes second learns of the first's.
--   try      2 ms of a trial. Returns {1, 0} to whoever may try, {0, ms left} to the others.
--   close    2 channel, 3 message.
--   release  the trial ended without telling anything.
--   probe    2 ms for which it counts as down (0: it is up), 3 error, 4 channel, 5 message.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local key = KEYS[1]
local told = ARGV[1]
local function number(field) return tonumber(redis.call('HGET', key, field) or '0') end
local function keep() redis.call('PEXPIRE', key, 86400000) end

if told == 'open' then
  redis.call('HSET', key, 'error', ARGV[5], 'error_at', now)
  keep()
  local left = number('until') - now
  if left > 0 then return {left, number('opens')} end
  local opens = redis.call('HINCRBY', key, 'opens', 1)
  local span = math.min(tonumber(ARGV[3]), tonumber(ARGV[2]) * 2 ^ math.min(opens - 1, 30))
  span = math.floor(span * (1 - tonumber(ARGV[4]) / 5))
  redis.call('HSET', key, 'until', now + span)
  redis.call('HDEL', key, 'trial')
  redis.call('PUBLISH', ARGV[6], ARGV[7])
  return {span, opens}
elseif told == 'try' then
  local left = math.max(number('until'), number('down'), number('trial')) - now
  if left > 0 then return {0, math.min(left, 1000)} end
  redis.call('HSET', key, 'trial', now + tonumber(ARGV[2]))
  keep()
  return {1, 0}
elseif told == 'close' then
  redis.call('HDEL', key, 'opens', 'until', 'trial')
  redis.call('PUBLISH', ARGV[2], ARGV[3])
elseif told == 'release' then
  redis.call('HDEL', key, 'trial')
elseif told == 'probe' then
  local was = number('down') > now
  if tonumber(ARGV[2]) > 0 then
    redis.call('HSET', key, 'down', now + tonumber(ARGV[2]), 'error', ARGV[3], 'error_at', now)
    keep()
  else
    redis.call('HDEL', key, 'down')
  end
  if was ~= (tonumber(ARGV[2]) > 0) then redis.call('PUBLISH', ARGV[4], ARGV[5]) end
end
return {0, 0}
