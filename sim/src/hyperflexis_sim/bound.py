"""What no scheduler could exceed: two upper bounds on attainment, both with every length known in advance.

Both pool the workers into one server that is never idle for want of balance and never short of KV. A request's work is
the marginal time of its prefill and decodes, and the part that its decodes must bear of what steps cost whatever is in
them: in steps of its TPOT P that cost b, decodes get P - b at most, so a microsecond of theirs takes 1 / (1 - b/P).
Who shares steps with tighter ones pays more; prefill could be done elsewhere in steps of any length, and pays nothing.
Requests whose prefill alone takes longer than their TTFT, or whose TPOT is no longer than an empty step, count as lost.

- `fluid_bound`: the steady state. Deadlines do not matter, only that no more work is taken on than gets done; the
  cheapest requests are served. It is no bound for bursts, whose work can be done after they are over.
- `clairvoyant_bound`: the linear programme over time: request i gets z_i of its work w_i between its arrival and the
  end of its last promise (TTFT and all TPOTs), fractions count, and the sum of z_i / w_i is maximal. What can be done
  for a set of requests with windows in time is a polymatroid, on which the greedy algorithm is optimal (Edmonds,
  1970): by rising work, each gets what its window can still give. Time is cut into equal bins, windows rounded
  outwards, so that it stays a bound.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_sim.request import SimRequest

BINS = 700


def fluid_bound(requests: Sequence[SimRequest], model: StepTimeModel, workers: int, seconds: float) -> float:
    """Attainment at most, where these arrive in `seconds` of a steady state."""
    work_us = np.sort(_work_us(requests, model))
    capacity_us = workers * seconds * 1e6
    done_us = np.cumsum(work_us)
    whole = int(np.searchsorted(done_us, capacity_us, "right"))
    if whole == len(work_us) or not np.isfinite(work_us[whole]):
        return whole / max(len(requests), 1)
    left_us = capacity_us - (done_us[whole - 1] if whole else 0.0)
    return float(whole + left_us / work_us[whole]) / len(requests)


def clairvoyant_bound(requests: Sequence[SimRequest], model: StepTimeModel, workers: int, bins: int = BINS) -> float:
    """Attainment at most. O(n bins^2) at worst."""
    if not requests:
        return 0.0
    work_us = _work_us(requests, model)
    arrival_us = np.array([r.arrival_us for r in requests])
    promised_us = np.array([r.promised_ttft_us + (r.output_tokens - 1) * r.tpot_us for r in requests])
    begin_us, end_us = float(arrival_us.min()), float((arrival_us + promised_us).max())
    bin_us = max((end_us - begin_us) / bins, 1.0)
    first = ((arrival_us - begin_us) // bin_us).astype(int)
    last = np.minimum(np.ceil((arrival_us + promised_us - begin_us) / bin_us).astype(int) - 1, bins - 1)
    each_us = bin_us * workers
    # room[u, v]: what the bins from u to v can still do beyond the work of the windows inside them.
    spans = np.arange(bins)[None, :] - np.arange(bins)[:, None] + 1.0
    room = np.where(spans > 0, spans * each_us, np.inf)
    served = 0.0
    for at in np.argsort(work_us).tolist():
        if not np.isfinite(work_us[at]):
            break
        around = room[: first[at] + 1, last[at] :]
        given_us = min(float(work_us[at]), max(float(around.min()), 0.0))
        if given_us > 0:
            around -= given_us
            served += given_us / float(work_us[at])
    return served / len(requests)


def _work_us(requests: Sequence[SimRequest], model: StepTimeModel) -> np.ndarray:
    """[n] Of each, prefill and decodes; infinite for those that cannot be in time even alone."""
    prefill_us = np.array([model.prefill_us(r.prompt_tokens) for r in requests])
    decode_us = np.array([model.decode_us(r.output_tokens - 1, r.prompt_tokens) for r in requests])
    ttft_us = np.array([r.promised_ttft_us for r in requests])
    left = np.maximum(1.0 - model.base_us / np.array([r.promised_tpot_us for r in requests]), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        stepped_us = np.where(decode_us > 0, decode_us / left, 0.0)
    return np.where(prefill_us > ttft_us, np.inf, prefill_us + stepped_us)
