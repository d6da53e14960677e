-- Drops a record that its owner has closed, and no other: the request goes on elsewhere and is recorded anew.
-- KEYS: req, journal   ARGV: the owner_gen that closed it
if redis.call('HGET', KEYS[1], 'owner_gen') ~= ARGV[1] then return 0 end
if redis.call('HGET', KEYS[1], 'state') ~= 'finished' then return 0 end
return redis.call('DEL', KEYS[1], KEYS[2])
