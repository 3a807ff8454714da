-- Starts the clock of a token, once, whatever races. The moment waits in the pending hash until PostgreSQL has it.
-- KEYS: 1 credential, 2 generation, 3 pending activations.
-- ARGV: 1 token, 2 duration in ms, 3 digest, 4 lifetime of the generation in s.
-- Returns {1 started here | 0 had started | -1 revoked or held meanwhile, activated, expires}.
local c = redis.call('HMGET', KEYS[1], 't', 'a', 'e', 'r')
if c[4] == 'r' or c[4] == 'h' then return {-1} end
if c[1] == ARGV[1] and c[2] ~= '' then return {0, c[2], c[3]} end
local t = redis.call('TIME')
local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
local started = redis.call('HSETNX', KEYS[3], ARGV[1], now .. ' ' .. ARGV[3])
local activated = string.match(redis.call('HGET', KEYS[3], ARGV[1]), '^%d+')
local expires = string.format('%.0f', activated + ARGV[2])
if c[1] == ARGV[1] then redis.call('HSET', KEYS[1], 'a', activated, 'e', expires) end
-- A fill that read PostgreSQL before this would store the token as unused.
redis.call('INCR', KEYS[2])
redis.call('EXPIRE', KEYS[2], ARGV[4])
return {started, activated, expires}
