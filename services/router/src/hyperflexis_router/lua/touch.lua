-- Says what state the owner has it in, keeps the record, and tells whether it is still the owner.
-- KEYS: req, journal [, idem]   ARGV: owner_gen, ttl_s, state
-- Returns 1, 0 = another owner, -1 = no such record.
local gen = redis.call('HGET', KEYS[1], 'owner_gen')
if not gen then return -1 end
if gen ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'state', ARGV[3])
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[2]) end
return 1
