-- Stores a credential read from PostgreSQL, unless it was evicted since the reader looked at the generation:
-- an in-flight fill must not bring a revoked token back.
-- KEYS: 1 credential, 2 generation, 3 pending activations.
-- ARGV: 1 generation seen, 2 lifetime in ms, 3 kind ("c" credential, "u" unknown, "r" revoked, "h" held), then for a
--       credential: 4 token, 5 user, 6 scope, 7 duration in ms, 8 activated ("" or ms), 9 expires, 10 owner
--       active, 11 superuser, 12 key prefix, 13 device that used it last, 14 ms for which it still holds the token,
--       15 successor as "token scope duration activated expires", times in ms ("": none).
if (redis.call('GET', KEYS[2]) or '0') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if ARGV[3] ~= 'c' then
  redis.call('HSET', KEYS[1], 'r', ARGV[3])
else
  local activated, expires = ARGV[8], ARGV[9]
  if activated == '' then
    -- Activated while PostgreSQL did not hear of it yet.
    local pending = redis.call('HGET', KEYS[3], ARGV[4])
    if pending then
      activated = string.match(pending, '^%d+')
      expires = string.format('%.0f', activated + ARGV[7])
    end
  end
  redis.call('HSET', KEYS[1], 't', ARGV[4], 'u', ARGV[5], 's', ARGV[6], 'd', ARGV[7], 'a', activated,
    'e', expires, 'o', ARGV[10], 'x', ARGV[11])
  if ARGV[15] and ARGV[15] ~= '' then redis.call('HSET', KEYS[1], 'n', ARGV[15]) end
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if ARGV[14] and tonumber(ARGV[14]) > 0 then
  -- A Redis that started empty must not forget who holds the token.
  redis.call('SET', ARGV[12] .. 'dev:' .. ARGV[4], ARGV[13], 'NX', 'PX', ARGV[14])
end
return 1
