-- A worker's call about every server, once a second: who probes, what is in flight, what the others know.
-- KEYS: 1 the lease of the one that probes, then two per server: its hash (see breaker.lua), the hash of what is
--       in flight by worker.
-- ARGV: 1 worker, 2 ms of the lease, then two per server: exchanges in flight here, an error that is not told yet.
-- Returns {1 when this worker probes, {opens, ms left open, ms left down} ...}.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local worker = ARGV[1]
local holder = redis.call('GET', KEYS[1])
if not holder or holder == worker then redis.call('SET', KEYS[1], worker, 'PX', ARGV[2]) end
local found = {(not holder or holder == worker) and 1 or 0}
for place = 1, (#KEYS - 1) / 2 do
  local key, flight = KEYS[place * 2], KEYS[place * 2 + 1]
  redis.call('HSET', flight, worker, ARGV[place * 2 + 1] .. ':' .. now)
  redis.call('PEXPIRE', flight, 10000)
  if redis.call('HLEN', flight) > 64 then
    for _, field in ipairs(redis.call('HKEYS', flight)) do
      local told = tonumber(string.match(redis.call('HGET', flight, field), ':(%d+)$'))
      if now - told > 10000 then redis.call('HDEL', flight, field) end
    end
  end
  local problem = ARGV[place * 2 + 2]
  if problem ~= '' then
    redis.call('HSET', key, 'error', problem, 'error_at', now)
    redis.call('PEXPIRE', key, 86400000)
  end
  local known = redis.call('HMGET', key, 'opens', 'until', 'down')
  local left = tonumber(known[2] or '0') - now
  local down = tonumber(known[3] or '0') - now
  found[place + 1] = {tonumber(known[1] or '0'), math.max(0, left), math.max(0, down)}
end
return found
