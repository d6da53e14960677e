"""KV caches between engines: where blocks lie, how they are read from a peer, and who may write where meanwhile."""
