-- Looks after one open stream: keeps its device's claim alive and says whether something changed.
-- KEYS: 1 generation, 2 claim. ARGV: 1 device, 2 idle time in ms.
-- Returns {generation, 1 when another device holds the token}.
local holder = redis.call('GET', KEYS[2])
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
  holder = false
end
return {redis.call('GET', KEYS[1]) or '0', holder and 1 or 0}
