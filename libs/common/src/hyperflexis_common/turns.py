"""The order in which workers serve prompts, known to whoever sends them there too: what of a queue is a request's own
wait, and what will wait for it.

A worker that may choose serves by *turn*: due + WORK_ORDER * work / worth. The work is prefill and expected decodes, in
microseconds as they really take. docs/scheduling.md argues why.
"""

from __future__ import annotations

WORK_ORDER = 10.0
"""Microseconds of deadline that a microsecond of work counts as: among equals in haste, the cheap go first."""

TURNS_US = tuple(64_000.0 * 3.0**power for power in range(7))
"""From now: workers report how much of their queue has its turn by each of these (WorkerLoad.queued_before_us)."""
ALL_US = 3 * TURNS_US[-1]
"""By then, everything counts: best effort too, whose turn is days away."""
