-- Takes a request over from the owner that the caller has read, and no other. A finished one stays as it is.
-- KEYS: req, journal   ARGV: expected owner_gen, new owner_gen, router_id, lease_ms
-- Returns {now_us, journal, field, value, ...}, {} = no such record, {'conflict'} = somebody else was first.
local gen = redis.call('HGET', KEYS[1], 'owner_gen')
if not gen then return {} end
if gen ~= ARGV[1] and gen ~= ARGV[2] then return {'conflict'} end
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
if redis.call('HGET', KEYS[1], 'state') ~= 'finished' then
  redis.call('HSET', KEYS[1], 'owner_gen', ARGV[2], 'router_id', ARGV[3],
    'owner_until_us', string.format('%.0f', now_us + ARGV[4] * 1000))
end
local reply = {string.format('%.0f', now_us), redis.call('GET', KEYS[2]) or ''}
for _, part in ipairs(redis.call('HGETALL', KEYS[1])) do reply[#reply + 1] = part end
return reply
