"""Who runs what, where and when: events and `now_us` in, effects out.

Nothing here reads a clock, opens a socket or draws a random number, so the same classes run live, in the
simulator and in the tests.
"""
