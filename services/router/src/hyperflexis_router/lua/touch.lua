-- Renews the owner's lease (0 ms = gives it back) and tells whether it is still the owner.
-- KEYS: req, journal [, idem]   ARGV: owner_gen, lease_ms, ttl_s, state
-- Returns 1, 0 = another owner, -1 = no such record.
local gen = redis.call('HGET', KEYS[1], 'owner_gen')
if not gen then return -1 end
if gen ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'state', ARGV[4],
  'owner_until_us', string.format('%.0f', time[1] * 1000000 + time[2] + ARGV[2] * 1000))
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
if #KEYS == 3 then redis.call('EXPIRE', KEYS[3], ARGV[3]) end
return 1
