-- Writes output tokens from an index on, over what was there. Repeating it changes nothing, however late: a
-- journal never gets shorter but by adoption.
-- KEYS: req, journal   ARGV: owner_gen, index, packed tokens, ttl_s, first_token_us ('' = none)
-- Returns 1, 0 = another owner, -1 = no such record or a journal too short to go on from the index.
local gen = redis.call('HGET', KEYS[1], 'owner_gen')
if not gen then return -1 end
if gen ~= ARGV[1] then return 0 end
local at = 4 * ARGV[2]
if redis.call('STRLEN', KEYS[2]) < at then return -1 end
redis.call('SETRANGE', KEYS[2], at, ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[4])
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 'first_token_us', ARGV[5]) end
return 1
