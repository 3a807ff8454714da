-- Takes one batch of counts, once, however often it is sent.
-- KEYS: 1 stream of batches, 2 marker of this batch.
-- ARGV: 1 batch id, 2 rows as JSON, 3 key prefix, 4 lifetime of the live totals in s, then for each token: token,
--       requests, bytes in, bytes out.
if not redis.call('SET', KEYS[2], '1', 'NX', 'EX', 86400) then return 0 end
redis.call('XADD', KEYS[1], '*', 'id', ARGV[1], 'rows', ARGV[2])
for i = 5, #ARGV, 4 do
  local usage = ARGV[3] .. 'use:' .. ARGV[i]
  redis.call('HINCRBY', usage, 'requests', ARGV[i + 1])
  redis.call('HINCRBY', usage, 'bytes_in', ARGV[i + 2])
  redis.call('HINCRBY', usage, 'bytes_out', ARGV[i + 3])
  redis.call('EXPIRE', usage, ARGV[4])
end
return 1
