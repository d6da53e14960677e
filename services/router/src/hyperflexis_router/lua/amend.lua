-- Sets fields of a live record. Repeating it changes nothing.
-- KEYS: req, journal   ARGV: owner_gen, field, value, ...
-- Returns 1, 0 = another owner, -1 = no such record.
local gen = redis.call('HGET', KEYS[1], 'owner_gen')
if not gen then return -1 end
if gen ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return 1
