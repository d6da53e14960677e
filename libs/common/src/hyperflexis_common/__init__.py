"""What at least three of the services need, and what changes slowly: configuration, clocks, channels and
servers, health, metrics, logs, Redis access, attempts, packed tokens, the step-time model, the verdict.

Domain logic of one service never lives here.
"""

PROTOCOL_VERSION = 1
"""Peers of the same protocol version interoperate; everything finer is gated by named features."""
