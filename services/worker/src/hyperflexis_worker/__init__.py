"""The GPU worker: a gRPC shell process and an engine process that owns the device, the KV pool and the weights."""
