-- PostgreSQL has decided on the activation: what it holds is what counts from now on, nothing when it refused.
-- KEYS: 1 credential, 2 generation, 3 pending activations.
-- ARGV: 1 token, 2 activated ms ("" when refused), 3 expires ms, 4 lifetime of the generation in s.
redis.call('HDEL', KEYS[3], ARGV[1])
if redis.call('HGET', KEYS[1], 't') == ARGV[1] then
  redis.call('HSET', KEYS[1], 'a', ARGV[2], 'e', ARGV[3])
end
redis.call('INCR', KEYS[2])
redis.call('EXPIRE', KEYS[2], ARGV[4])
return 1
