-- Records a request, with its idempotency key where it has one. Repeating it changes nothing.
-- KEYS: req, journal [, idem]   ARGV: owner_gen, request_id, digest, ttl_s, age_us, field, value, ...
-- Returns {"created"}, {"held", request_id, digest} or {"lost"}.
if #KEYS == 3 then
  local held = redis.call('HMGET', KEYS[3], 'request_id', 'digest')
  if held[1] and held[1] ~= ARGV[2] then return {'held', held[1], held[2]} end
  redis.call('HSET', KEYS[3], 'request_id', ARGV[2], 'digest', ARGV[3])
  redis.call('EXPIRE', KEYS[3], ARGV[4])
end
local gen = redis.call('HGET', KEYS[1], 'owner_gen')
if gen then
  if gen == ARGV[1] then return {'created'} end
  return {'lost'}
end
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
redis.call('HSET', KEYS[1], 'owner_gen', ARGV[1],
  'created_us', string.format('%.0f', now_us - ARGV[5]), unpack(ARGV, 6))
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('DEL', KEYS[2])
return {'created'}
