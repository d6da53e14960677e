-- Takes a request over from the owner that the caller has read, and no other. A finished one stays as it is.
-- The client's tokens from an index on win: where the journal differs from them, it ends before them.
-- KEYS: req, journal   ARGV: expected owner_gen, new owner_gen, router_id, index, the client's tokens
-- Returns {now_us, journal, field, value, ...}, {} = no such record, {'conflict'} = somebody else was first.
local gen = redis.call('HGET', KEYS[1], 'owner_gen')
if not gen then return {} end
if gen ~= ARGV[1] and gen ~= ARGV[2] then return {'conflict'} end
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
if redis.call('HGET', KEYS[1], 'state') ~= 'finished' then
  redis.call('HSET', KEYS[1], 'owner_gen', ARGV[2], 'router_id', ARGV[3])
end
local journal = redis.call('GET', KEYS[2]) or ''
if redis.call('HGET', KEYS[1], 'state') ~= 'finished' then
  local known = string.sub(journal, 4 * ARGV[4] + 1, 4 * ARGV[4] + #ARGV[5])
  if known ~= string.sub(ARGV[5], 1, #known) then
    journal = string.sub(journal, 1, 4 * ARGV[4])
    redis.call('SET', KEYS[2], journal, 'KEEPTTL')
  end
end
local reply = {string.format('%.0f', now_us), journal}
for _, part in ipairs(redis.call('HGETALL', KEYS[1])) do reply[#reply + 1] = part end
return reply
