"""Decisions in words: what was decided, why, and the numbers that decided it.

A kind or a reason of a newer server is said as it is spelled, with its numbers: nothing is left out for want of words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hyperflexis_cli.figures import count, microseconds, named, share
from hyperflexis_client import Decision

PLACED_BY = {
    "earliest_first_token": "its first token would come soon there, its decodes be little in the way",
    "round_robin": "it was that worker's turn",
    "least_requests": "it had the fewest requests",
    "least_queued_tokens": "it had the fewest prompt tokens queued",
    "second_try": "a second try: there it could still be in time",
    "downgraded": "under its new promise",
    "best_effort": "behind all that still have a promise",
}
PLACE_NUMBERS = {
    "candidates", "requests", "queued_prefill_us", "ahead_prefill_us", "own_prefill_us", "turn_us", "prefill_share",
    "predicted_ttft_us", "harm_us", "empty_step_us", "committed_tokens", "slack_us", "cached_tokens",
    "pulled_tokens", "read_us",
}  # fmt: skip
"""Those that have words; the slack is what the promise leaves, which is said elsewhere."""
GIVEN_UP = {
    "hopeless": "it could not be in time even if it came next",
    "left_behind": "to be in time itself it would have made others late",
    "worker": "the promise could not be kept",
}
LOST = {
    "not_started": "its prompt did not come to the worker in time",
    "engine_lost": "the worker's engine failed",
    "worker_gone": "the worker is gone",
    "worker_hung": "the worker made no step for too long",
    "replaced": "the worker was started anew",
    "fingerprint": "the worker's model is not that of the other workers",
    "rejected": "the worker did not take it",
    "cancelled_by_worker": "nobody had listened for its tokens for too long",
    "failed_for_router": "the router could not get its tokens",
    "router_away": "its router was away",
    "not_in_snapshot": "the worker came back without it",
    "move_failed": "it had been stopped for a move that came to nothing",
    "stopped_for_nobody": "it had been stopped for a move that was over",
}
MOVED_FOR = {
    "operator": "an operator wants it",
    "role": "it is prefilled, and that worker only prefills",
    "drain": "its worker is leaving",
}
STAYS = {
    "no_decode_worker": "no other worker decodes",
    "no_kv_room": "no other worker has room for its cache",
    "no_tpot_budget": "no other worker could keep all promises with it",
    "links_busy": "the links there are busy",
    "no_worker_with_both": "no other worker has both room for its cache and time for its tokens",
}
NOT_MOVED = {
    "no_blocks": "no room for its cache there",
    "draining": "that worker is leaving",
    "no_engine": "no engine serves there",
    "lease_over": "its cache was not across in time",
    "read_failed": "its cache could not be read",
    "layout_differs": "the two engines' caches differ",
    "source_not_found": "it had ended where it was",
    "source_resource_exhausted": "too much is being moved from there already",
    "worker_gone": "that worker is gone",
    "not_in_snapshot": "that worker came back without it",
}
REFUSED = {
    "slo": "its promise cannot be kept",
    "queue_full": "too many requests wait already",
    "no_worker": "no worker became ready in time",
    "unservable": "no worker could ever hold it",
    "attempts_exhausted": "it was placed too often",
    "deadline_past": "its first token was due before it was submitted",
    "cancelled": "it had been cancelled",
}
REVOKED = {"idle_worker": "another worker has nothing to do", "worker_leaves": "the worker is leaving"}
HELD = {"no_ready_worker": "no worker is ready", "new_leader": "a new leader first hears what the workers have"}


def worded(decision: Decision) -> str:
    """One sentence."""
    say = SAID.get(decision.kind)
    return say(decision) if say is not None else _as_spelled(decision)


def _place(decision: Decision) -> str:
    numbers = decision.numbers
    attempt = f" as attempt {decision.attempt}" if decision.attempt else ""
    committed = numbers.get("committed_tokens")
    onward = f" to go on after {_counted(committed, 'token')}" if committed else ""
    said = f"placed on {_worker(decision)}{attempt}{onward}: {_why(PLACED_BY, decision)}"
    if "candidates" in numbers:
        said += f", of {_counted(numbers['candidates'], 'worker')}"
    found = []
    if "requests" in numbers:
        found.append(_counted(numbers["requests"], "request"))
    if "queued_prefill_us" in numbers:
        ahead = f", {microseconds(numbers['ahead_prefill_us'])} of it ahead" if "ahead_prefill_us" in numbers else ""
        found.append(f"{microseconds(numbers['queued_prefill_us'])} of prefill queued{ahead}")
    if "own_prefill_us" in numbers:
        found.append(f"{microseconds(numbers['own_prefill_us'])} of its own to come")
    if numbers.get("cached_tokens"):
        found.append(f"{_counted(numbers['cached_tokens'], 'token')} of its prompt in the prefix cache")
    if numbers.get("pulled_tokens"):
        took = microseconds(numbers.get("read_us", 0.0))
        found.append(f"{_counted(numbers['pulled_tokens'], 'token')} of it to be read from another worker in {took}")
    if "prefill_share" in numbers:
        found.append(f"{share(numbers['prefill_share'])} of the time for prefill")
    if "empty_step_us" in numbers:
        found.append(f"a step takes {microseconds(numbers['empty_step_us'])} with nothing in it: longer than its TPOT")
    if numbers.get("harm_us"):
        found.append(f"what its decodes do to others counts as {microseconds(numbers['harm_us'])}")
    found += [named(name, value) for name, value in sorted(numbers.items()) if name not in PLACE_NUMBERS]
    said += f"; there: {', '.join(found)}" if found else ""
    predicted_us = numbers.get("predicted_ttft_us")
    if not predicted_us:
        return said
    return f"{said}; {'next' if committed else 'first'} token predicted after {microseconds(predicted_us)}"


def _gave_up(decision: Decision) -> str:
    numbers, parts = decision.numbers, []
    if "predicted_ttft_us" in numbers:
        late_us = numbers.get("late_us", 0.0)
        late = f", {microseconds(late_us)} too late" if late_us > 0 else ""
        parts.append(f"first token predicted after {microseconds(numbers['predicted_ttft_us'])}{late}")
    if "waiting" in numbers:
        parts.append(f"{count(numbers['waiting'])} waited there")
    forecast = f"; {', '.join(parts)}" if parts else ""
    return f"given up by {_worker(decision)}: {_why(GIVEN_UP, decision)}{forecast}"


def _hold(decision: Decision) -> str:
    held = decision.numbers.get("held", 0.0)
    others = f", {_counted(held - 1, 'other')} too" if held > 1 else ""
    return f"waits: {_why(HELD, decision)}{others}"


def _finish(decision: Decision) -> str:
    numbers = decision.numbers
    said = "finished" if decision.reason in ("worker", "snapshot") else f"over: {decision.reason.replace('_', ' ')}"
    if numbers.get("output_tokens"):
        said += f" after {_counted(numbers['output_tokens'], 'token')}"
    if numbers.get("cached_tokens"):
        said += f"; {_counted(numbers['cached_tokens'], 'token')} of its prompt were in the prefix cache"
    if numbers.get("pulled_tokens"):
        read = _counted(numbers["pulled_tokens"], "token")
        said += f"; {read} had been read from another worker in {microseconds(numbers.get('pull_us', 0.0))}"
    elif numbers.get("pull_us"):
        said += f"; it waited {microseconds(numbers['pull_us'])} for another worker's cache, in vain"
    if numbers.get("preemptions"):
        said += f"; it lost its KV blocks {_counted(numbers['preemptions'], 'time')}"
    return said


def _preempt(decision: Decision) -> str:
    tokens = decision.numbers.get("recompute_tokens")
    again = f"; {_counted(tokens, 'token')} to compute again" if tokens else ""
    return f"preempted on {_worker(decision)}: its KV blocks went to other requests{again}"


def _moved(decision: Decision) -> str:
    numbers = decision.numbers
    said = f"moved to {_worker(decision)} with its cache"
    if "blocks" in numbers:
        said += f", {_counted(numbers['blocks'], 'block')}"
    if "took_us" in numbers:
        said += f", in {microseconds(numbers['took_us'])}"
    if "stopped_us" in numbers:
        said += f"; it stood still for {microseconds(numbers['stopped_us'])} of them"
    return said


SAID: dict[str, Callable[[Decision], str]] = {
    "place": _place,
    "gave_up": _gave_up,
    "hold": _hold,
    "finish": _finish,
    "moved": _moved,
    "move": lambda decision: f"to move to {_worker(decision)}: {_why(MOVED_FOR, decision)}",
    "stay": lambda decision: f"decodes on {_worker(decision)}, where it was prefilled: {_why(STAYS, decision)}",
    "move_failed": lambda decision: f"not moved to {_worker(decision)}: {_why(NOT_MOVED, decision)}",
    "preempt": _preempt,
    "begin": lambda decision: f"its first chunk has run on {_worker(decision)}",
    "first_token": lambda decision: f"{_worker(decision)} made its first token",
    "resumed": lambda decision: f"goes on with the next token on {_worker(decision)}",
    "best_effort": lambda decision: f"its promise as {decision.reason} is given up: its client was told",
    "downgrade": lambda decision: f"downgraded to {decision.reason}: its client was told",
    "refuse": lambda decision: f"refused: {_why(REFUSED, decision)}",
    "revoke": lambda decision: f"asked back from {_worker(decision)}: {_why(REVOKED, decision)}",
    "revoked": lambda decision: f"given back by {_worker(decision)} before it began",
    "keep": lambda decision: f"stays on {_worker(decision)}: it had begun",
    "lost": lambda decision: f"the attempt on {_worker(decision)} is lost: {_why(LOST, decision)}",
    "adopt": lambda decision: f"found running on {_worker(decision)} by a new leader",
    "cancel": lambda _: "cancelled by its client",
}


def _why(reasons: Mapping[str, str], decision: Decision) -> str:
    return reasons.get(decision.reason) or decision.reason.replace("_", " ") or "no reason given"


def _worker(decision: Decision) -> str:
    return decision.worker_id or "a worker"


def _counted(number: float, noun: str) -> str:
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def _as_spelled(decision: Decision) -> str:
    where = f" on {decision.worker_id}" if decision.worker_id else ""
    why = f": {decision.reason.replace('_', ' ')}" if decision.reason else ""
    numbers = ", ".join(named(name, value) for name, value in sorted(decision.numbers.items()))
    return f"{decision.kind.replace('_', ' ')}{where}{why}{f' ({numbers})' if numbers else ''}"
