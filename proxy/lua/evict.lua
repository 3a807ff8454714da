-- Forgets credentials and tells the workers. The generation stops a fill that is under way; a revoked token
-- leaves a tombstone as well.
-- KEYS: credential and generation of each digest, alternating.
-- ARGV: 1 channel, 2 lifetime of tombstone and generation in s, 3 "1" when revoked, then the digests.
for i = 1, #KEYS, 2 do
  redis.call('DEL', KEYS[i])
  if ARGV[3] == '1' then
    redis.call('HSET', KEYS[i], 'r', 'r')
    redis.call('EXPIRE', KEYS[i], ARGV[2])
  end
  redis.call('INCR', KEYS[i + 1])
  redis.call('EXPIRE', KEYS[i + 1], ARGV[2])
  redis.call('PUBLISH', ARGV[1], ARGV[3 + (i + 1) / 2])
end
return #KEYS / 2
