-- Lets another device have a token's seat.
-- KEYS: 1 claim of a token with one seat, 2 claims of one with more. ARGV: 1 device, "" for all.
if ARGV[1] == '' then return redis.call('DEL', KEYS[1], KEYS[2]) end
local freed = redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('GET', KEYS[1]) == ARGV[1] then freed = freed + redis.call('DEL', KEYS[1]) end
return freed
