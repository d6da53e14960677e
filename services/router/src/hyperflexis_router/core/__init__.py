"""The router's decisions, pure: messages and the time in, effects out. No I/O, no clock, no randomness."""
