"""Finds senders round by round.

Each round adds the senders found so far to the receivers; it stops when no new head appears.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.selection.effects.measure import Measure
from hydrahead_jax.selection.effects.over_probes import Estimates, Progress, Stage, UsablePairs
from hydrahead_jax.selection.effects.sender import Receivers
from hydrahead_jax.selection.scores.ranking import Head
from hydrahead_jax.selection.scores.statistics import THRESHOLD
from hydrahead_jax.selection.screening import agreement, missed_mass, ruled_in, sample
from hydrahead_jax.selection.settings import SelectionSettings

_log = logging.getLogger(__name__)


class Circuit(NamedTuple):
    """Reports the effects of all heads, and how they were found.

    Attributes:
      sender_BLN: sender effects on each sub-probe; nan for heads that were not patched.
      total_BLN: total effects on each sub-probe, alike; None if they were not asked for.
      account: how the effects were found, JSON-ready.
    """

    sender_BLN: list[np.ndarray]
    total_BLN: list[np.ndarray] | None
    account: dict[str, Any]


class _Round(NamedTuple):
    """Says which heads one round patched, and their effects.

    Attributes:
      drawn: the heads that were ruled out but patched as a sample.
    """

    receivers: Receivers
    sender_BLN: list[np.ndarray]
    patched: list[Head]
    drawn: list[Head]
    ruled_out: int
    estimates: list[Estimates] | None


def find_circuit(
    measure: Measure, probes: Sequence[UsablePairs], settings: SelectionSettings, progress: Progress
) -> Circuit:
    """Measures sender effects, and total effects if asked for, by the method of the settings.

    A head is a receiver once its mean effect on some sub-probe is 0.01, be it direct or through
    other receivers.
    """
    config, stage = measure.config, Stage(measure, probes, progress)
    candidates = [(l, n) for l in range(config.layers) for n in config.softmax_heads(l)]
    listening = _above([probe.receiver_BLN for probe in probes], candidates)
    rounds, new = [], listening
    while new and len(rounds) < settings.sender_rounds:
        last = _round(stage, settings, f"round {len(rounds) + 1}", listening, candidates)
        new = _above(last.sender_BLN, candidates) - listening
        rounds.append({"receivers": len(listening), "patched": len(last.patched), "new": len(new)})
        listening = listening | new
    if not rounds:
        silent = [np.zeros_like(probe.receiver_BLN) for probe in probes]  # nobody listens
        return Circuit(silent, None, {"method": settings.senders, "rounds": [], "converged": True})
    if new:
        _log.warning("senders were still being found in round %s", len(rounds))
    estimates = last.estimates
    if estimates is None and settings.compare_attribution:
        estimates = stage.estimates("attribution", last.receivers)
    total = _totals(stage, settings, estimates, candidates) if settings.total else None
    clamped_PLN = np.stack([_mean(np.clip(x, 0, 1)) for x in last.sender_BLN])
    account = {
        "method": settings.senders,
        "rounds": rounds,
        "converged": not new,
        "missed": missed_mass(clamped_PLN, last.drawn, last.ruled_out),
    }
    if estimates is not None:
        account["attribution"] = _agreements(stage, settings, last, estimates, total)
    return Circuit(last.sender_BLN, total, account)


def _round(
    stage: Stage, settings: SelectionSettings, name: str, listening: set[Head], candidates
) -> _Round:
    config = stage.config
    receivers = by_layer(listening, config)
    end = max(layer for layer, _ in listening)
    upstream = [head for head in candidates if head[0] < end]
    if settings.senders == "exact":
        sender = stage.senders(f"senders, {name}", receivers, upstream)
        return _Round(receivers, _silent_from(end, sender), upstream, [], 0, None)
    estimates = stage.estimates(f"attribution, {name}", receivers)
    if settings.senders == "attribution":
        sender = [e.sender_BLN for e in estimates]
        return _Round(receivers, _silent_from(end, sender), [], [], 0, estimates)
    sender_XLN = np.concatenate([e.sender_FBLN.mean(axis=1) for e in estimates])
    kept = ruled_in(sender_XLN, upstream)
    rest = [head for head in upstream if head not in set(kept)]
    drawn = sample(rest, settings.sample, settings.seed)
    sender = stage.senders(f"senders, {name}", receivers, sorted(kept + drawn))
    return _Round(receivers, _silent_from(end, sender), kept + drawn, drawn, len(rest), estimates)


def _totals(stage: Stage, settings: SelectionSettings, estimates, candidates) -> list[np.ndarray]:
    if settings.senders == "attribution":
        return [e.total_BLN for e in estimates]
    if settings.senders == "screened":
        total_PLN = np.stack([e.total_BLN.mean(axis=0) for e in estimates])
        candidates = ruled_in(total_PLN, candidates)
    return stage.totals("totals", candidates)


def _agreements(
    stage: Stage, settings: SelectionSettings, last: _Round, estimates, total
) -> dict[str, Any]:
    """Compares exact effects with first-order ones, for the heads that have both."""
    direct = [probe.receiver_BLN for probe in stage.probes]
    compare = lambda exact, kind: agreement(
        np.mean([_mean(x) for x in exact], axis=0),
        np.mean([_mean(getattr(e, kind)) for e in estimates], axis=0),
    )
    found = {"direct": compare(direct, "direct_BLN")}
    if settings.senders != "attribution":
        found["sender"] = compare(last.sender_BLN, "sender_BLN")
        return found | ({} if total is None else {"total": compare(total, "total_BLN")})
    end = max(layer for layer, heads in enumerate(last.receivers) if heads)
    upstream = [(l, n) for l in range(end) for n in stage.config.softmax_heads(l)]
    drawn = sample(upstream, settings.sample, settings.seed)
    first = Stage(stage.measure, [probe.first() for probe in stage.probes], stage.progress)
    estimates = [Estimates(*(x[..., :1, :, :] for x in e)) for e in estimates]
    found["sender"] = compare(
        first.senders("check of senders", last.receivers, drawn), "sender_BLN"
    )
    if total is not None:
        found["total"] = compare(first.totals("check of totals", drawn), "total_BLN")
    return found


def by_layer(heads: set[Head], config: ModelConfig) -> Receivers:
    return tuple(tuple(sorted(n for l, n in heads if l == layer)) for layer in range(config.layers))


def _above(effects_PBLN: Sequence[np.ndarray], candidates: Sequence[Head]) -> set[Head]:
    """Returns candidates whose mean effect on some sub-probe reaches the threshold."""
    largest_LN = np.max([np.nan_to_num(_mean(np.clip(x, 0, 1))) for x in effects_PBLN], axis=0)
    return {head for head in candidates if largest_LN[head] >= THRESHOLD}


def _silent_from(layer: int, sender_BLN: list[np.ndarray]) -> list[np.ndarray]:
    """Sets effects from `layer` on to 0, because no receiver comes after."""
    for effect_BLN in sender_BLN:
        effect_BLN[:, layer:] = 0.0
    return sender_BLN


def _mean(effect_BLN: np.ndarray) -> np.ndarray:
    return effect_BLN.mean(axis=0)
