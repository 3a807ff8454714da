-- Takes one batch of counts, once, however often it is sent.
-- KEYS: 1 stream of batches, 2 marker of this batch.
-- ARGV: 1 batch id, 2 rows as JSON, 3 key prefix, 4 lifetime of the live totals in s, then for each token: token,
--       requests, bytes in, bytes out.
if not redis.call('SET', KEYS[2], '1', 'NX', 'EX', 86400) then return 0 end
redis.call('XADD', KEYS[1], '*', 'id', ARGV[1], 'rows', ARGV[2])
local t = redis.call('TIME')
local now = t[1] * 1000
-- include calendar
for i = 5, #ARGV, 4 do
  local token = ARGV[i]
  local counters = {
    [ARGV[3] .. 'use:' .. token] = ARGV[4],
    [ARGV[3] .. 'day:' .. token .. ':' .. day] = 259200,
    [ARGV[3] .. 'month:' .. token .. ':' .. month] = 3456000,
  }
  for usage, lifetime in pairs(counters) do
    if ARGV[i + 1] ~= '0' then redis.call('HINCRBY', usage, 'requests', ARGV[i + 1]) end
    if ARGV[i + 2] ~= '0' then redis.call('HINCRBY', usage, 'bytes_in', ARGV[i + 2]) end
    if ARGV[i + 3] ~= '0' then redis.call('HINCRBY', usage, 'bytes_out', ARGV[i + 3]) end
    redis.call('EXPIRE', usage, lifetime)
  end
end
return 1
