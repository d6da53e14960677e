-- Closes the record: the prompt goes, the rest stays a while. Repeating it changes nothing.
-- KEYS: req, journal [, idem]   ARGV: owner_gen, result, ttl_s, request_id
-- Returns 1, 0 = another owner, -1 = no such record.
local gen = redis.call('HGET', KEYS[1], 'owner_gen')
if not gen then return -1 end
if gen ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'state', 'finished', 'result', ARGV[2])
redis.call('HDEL', KEYS[1], 'prompt')
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
if #KEYS == 3 and redis.call('HGET', KEYS[3], 'request_id') == ARGV[4] then redis.call('EXPIRE', KEYS[3], ARGV[3]) end
return 1
