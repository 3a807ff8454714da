-- Stores a credential read from PostgreSQL, unless it was evicted since the reader looked at the generation:
-- an in-flight fill must not bring a revoked token back.
-- KEYS: 1 credential, 2 generation, 3 pending activations.
-- ARGV: 1 generation seen, 2 lifetime in ms, 3 kind ("c" credential, "u" unknown, "r" revoked, "h" held), then for a
--       credential: 4 token, 5 user, 6 scope, 7 duration in ms, 8 activated ("" or ms), 9 expires, 10 owner
--       active, 11 kind (1 superuser, 2 with rules of its own, 3 both, else 0), 12 key prefix, 13 device that used it
--       last, 14 ms for which it still holds the token, 15 successor as "token scope duration activated expires", times
--       in ms ("": none); of a token with rules of its own: 16 own rate ("" for none), 17 packed limits, 18 networks as
--       pairs of first and last address, 19 idle time of devices in ms, 20 number of devices that were seen lately, then
--       for each: device, moment in ms; and of a token with quotas what PostgreSQL counted: key of the day, requests,
--       bytes in, bytes out, key of the month and the same three.
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
  if ARGV[16] and ARGV[16] ~= '' then redis.call('HSET', KEYS[1], 'l', ARGV[16]) end
  if ARGV[17] and ARGV[17] ~= '' then redis.call('HSET', KEYS[1], 'p', ARGV[17]) end
  if ARGV[18] and ARGV[18] ~= '' then redis.call('HSET', KEYS[1], 'w', ARGV[18]) end
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if ARGV[14] and tonumber(ARGV[14]) > 0 then
  -- A Redis that started empty must not forget who holds the token.
  redis.call('SET', ARGV[12] .. 'dev:' .. ARGV[4], ARGV[13], 'NX', 'PX', ARGV[14])
end
if ARGV[20] then
  local following = 21 + 2 * ARGV[20]
  local seats = ARGV[12] .. 'seat:' .. ARGV[4]
  if following > 21 and redis.call('EXISTS', seats) == 0 then
    for i = 21, following - 1, 2 do redis.call('ZADD', seats, ARGV[i + 1], ARGV[i]) end
    redis.call('PEXPIRE', seats, ARGV[19])
  end
  -- What was counted does not shrink; Redis is ahead of PostgreSQL unless it lost its memory.
  for i = following, #ARGV, 4 do
    local fields = {'admitted', ARGV[i + 1], 'requests', ARGV[i + 1], 'bytes_in', ARGV[i + 2], 'bytes_out', ARGV[i + 3]}
    for field = 1, 7, 2 do
      local known = redis.call('HGET', ARGV[i], fields[field])
      if tonumber(fields[field + 1]) > tonumber(known or '0') then
        redis.call('HSET', ARGV[i], fields[field], fields[field + 1])
      end
    end
    redis.call('EXPIRE', ARGV[i], 3456000)
  end
end
return 1
