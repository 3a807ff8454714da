-- Looks after one open exchange: keeps its device's claim and its lease alive and says whether something changed.
-- KEYS: 1 generation, 2 gate, 3 claim, 4 leases, 5 workers that pace the token.
-- ARGV: 1 device, 2 idle time in ms, 3 seats, 4 lease ("" for none), 5 its lifetime in ms, 6 this worker ("" unless the
--       token is paced).
-- Returns {generation, 1 when other devices hold the token, 1 when the gateway is closed, workers that pace it}.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local g = redis.call('MGET', KEYS[1], KEYS[2])
local taken = 0
if ARGV[3] == '1' then
  local holder = redis.call('GET', KEYS[3])
  if holder == ARGV[1] then
    redis.call('PEXPIRE', KEYS[3], ARGV[2])
  elseif holder then
    taken = 1
  end
else
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - ARGV[2])
  if redis.call('ZSCORE', KEYS[3], ARGV[1]) then
    redis.call('ZADD', KEYS[3], now, ARGV[1])
    redis.call('PEXPIRE', KEYS[3], ARGV[2])
  elseif redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[3]) then
    taken = 1
  end
end
if ARGV[4] ~= '' then
  -- Added again if it is gone: the exchange is open, whatever Redis has forgotten.
  redis.call('ZADD', KEYS[4], now + ARGV[5], ARGV[4])
  redis.call('PEXPIRE', KEYS[4], ARGV[5])
end
local workers = 1
if ARGV[6] ~= '' then
  redis.call('ZADD', KEYS[5], now, ARGV[6])
  redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', now - 3000)
  redis.call('PEXPIRE', KEYS[5], 3000)
  workers = redis.call('ZCARD', KEYS[5])
end
return {g[1] or '0', taken, g[2] and 1 or 0, workers}
