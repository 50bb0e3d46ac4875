"""Scores all softmax heads of a model on the probes."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.dataclass_json import to_plain, untagged
from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.haystack import Haystack
from hydrahead_jax.evals.template import family
from hydrahead_jax.selection.circuit import find_circuit
from hydrahead_jax.selection.effects.measure import Measure
from hydrahead_jax.selection.effects.memory import AtOnce, at_once
from hydrahead_jax.selection.effects.over_probes import Progress, UsablePairs
from hydrahead_jax.selection.effects.pairwise import place_params
from hydrahead_jax.selection.effects.store import Store
from hydrahead_jax.selection.probes.pairs import ProbePairs
from hydrahead_jax.selection.probes.retrieval import SubProbe, probe_pairs, retrieval_probes
from hydrahead_jax.selection.scores.pair_effects import PairEffects, effects, usable_pairs
from hydrahead_jax.selection.scores.scores import HeadScores, head_scores
from hydrahead_jax.selection.settings import SelectionSettings
from hydrahead_jax.token_ids import check_token_ids, check_tokenizer

_log = logging.getLogger(__name__)


class Selection(NamedTuple):
    """Reports the scores of a model's heads and what they were made of.

    Attributes:
      probes: the sub-probes.
      pairs: pairs of each sub-probe, those that were left out included.
      effects: effects on the usable pairs of each sub-probe.
      scores: what follows from the effects.
      account: how they came about, JSON-ready.
    """

    probes: tuple[SubProbe, ...]
    pairs: tuple[ProbePairs, ...]
    effects: tuple[PairEffects, ...]
    scores: HeadScores
    account: dict[str, Any]


def select(
    config: ModelConfig,
    params: dict,
    tokenizer: Tokenizer,
    haystack: Haystack | np.ndarray,
    settings: SelectionSettings = SelectionSettings(),
    *,
    general: Sequence[tuple[SubProbe, ProbePairs]] = (),
    store: Path | None = None,
    mesh: Mesh | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Selection:
    """Computes effects and scores of every softmax head of a teacher, or of a hybrid.

    Args:
      config: of the model.
      params: of the model, in the dtype to compute in; readouts and the residual stream are
        float32. Float32 parameters give effects to 1e-5.
      tokenizer: of the model.
      haystack: text that the needles are put into.
      settings: see `SelectionSettings`.
      general: further sub-probes with their pairs, such as those of general ability.
      store: folder of finished batches, from which the same call resumes where it stopped.
      mesh: from `data_mesh`: each device takes its share of the pairs, and the parameters are
        sharded over all. None computes on one device.
      progress: called with a stage's name, and the pairs done and in all.

    Raises:
      UserError: no head is softmax, the documents do not fit, the model does not retrieve, or the
        store holds other results.
    """
    softmax_LN = softmax_heads(config)
    check_tokenizer(tokenizer, config.vocab)
    length = settings.length_for(config)
    probes, pairs = _probes(config, tokenizer, haystack, settings, length, general)
    chosen = _at_once(config, settings, pairs)
    kept = Store(store, _inputs(config, params, settings, pairs, chosen, mesh))
    measure = Measure(config, place_params(params, mesh), mesh, chosen, kept)
    usable, skipped = _receivers(measure, probes, pairs, progress)
    circuit = None
    if settings.senders != "none":
        circuit = find_circuit(measure, usable, settings, progress)
    found = tuple(
        PairEffects(
            receiver_BLN=probe.receiver_BLN,
            sender_BLN=circuit.sender_BLN[i] if circuit else None,
            total_BLN=circuit.total_BLN[i] if circuit and circuit.total_BLN else None,
            clean_B=probe.clean_B,
            corrupted_B=probe.corrupted_B,
            skipped=skipped[i],
        )
        for i, probe in enumerate(usable)
    )
    scores = head_scores(probes, found, softmax_LN)
    how = {"length": length, "pairs": settings.pairs, "seed": settings.seed}
    account = {**how, **_account(scores, found), "senders": circuit.account if circuit else None}
    return Selection(probes, pairs, found, scores, account)


def softmax_heads(config: ModelConfig) -> np.ndarray:
    """Returns bool [L, N]: the heads that are softmax attention over all tokens in this model.

    Raises:
      UserError: there are none.
    """
    layers, heads = range(config.layers), range(config.query_heads)
    found_LN = np.stack([np.isin(heads, config.softmax_heads(layer)) for layer in layers])
    if not found_LN.any():
        raise UserError(
            "no head of this model is softmax attention over all tokens, so there is none to "
            "score; give a model with softmax heads"
        )
    return found_LN


def _probes(config, tokenizer, haystack, settings: SelectionSettings, length: int, general):
    """Makes sub-probes and their pairs, each of them within the model's vocabulary and length."""
    template = family(settings.template, tokenizer)
    probes = retrieval_probes(template, needles=settings.needles)
    how = {"length": length, "pairs": settings.pairs, "seed": settings.seed}
    pairs = [probe_pairs(probe, tokenizer, haystack, **how) for probe in probes]
    for probe, arrays in general:
        if arrays.tokens_BT.shape[1] > config.max_length:
            raise UserError(
                f"probe {probe.name} has {arrays.tokens_BT.shape[1]} tokens, more than the "
                f"{config.max_length} that the model allows; use shorter documents"
            )
    probes, pairs = (*probes, *(p for p, _ in general)), (*pairs, *(a for _, a in general))
    for probe, arrays in zip(probes, pairs, strict=True):
        for ids in arrays:
            check_token_ids(ids, config.vocab, f"probe {probe.name}")
    return probes, pairs


def _at_once(config: ModelConfig, settings: SelectionSettings, pairs) -> AtOnce:
    shapes = [(x.tokens_BT.shape[1], x.answer_BJ.shape[1]) for x in pairs]
    longest = tuple(max(column) for column in zip(*shapes, strict=True))
    return at_once(config, *longest, settings.memory_gib * 2**30, pairs=settings.batch)


def _receivers(measure: Measure, probes, pairs, progress: Progress):
    """Returns each sub-probe's usable pairs with direct effects, and how many were unusable."""
    total, done = sum(len(x.tokens_BT) for x in pairs), 0

    def tick(new: int) -> None:
        nonlocal done
        done += new
        progress("receivers", done, total)

    found, skipped = [], []
    for probe, arrays in zip(probes, pairs, strict=True):
        result = measure.receivers(f"receivers/{probe.name}", arrays, tick)
        clean_B, corrupted_B = result["clean_B"], result["corrupted_B"]
        kept = usable_pairs(clean_B, corrupted_B, name=probe.name)
        clean_B, corrupted_B = clean_B[kept], corrupted_B[kept]
        receiver_BLN = effects(clean_B, corrupted_B, result["patched_BLN"][kept])
        usable = ProbePairs(*(x[kept] for x in arrays))
        found.append(UsablePairs(probe.name, usable, clean_B, corrupted_B, receiver_BLN))
        skipped.append(len(arrays.tokens_BT) - len(kept))
    if any(skipped):
        _log.info("pairs left out because the readouts are too close: %s", skipped)
    return found, skipped


def _inputs(config, params, settings, pairs, chosen: AtOnce, mesh) -> dict[str, Any]:
    """Returns what results depend on, rounding included."""
    first_rows = [leaf[(0,) * (leaf.ndim - 1)] for leaf in jax.tree.leaves(params)]
    return {
        "model": repr(config),
        "parameters": _digest(first_rows),
        "dtype": str(params["w_embed_VD"].dtype),
        "settings": to_plain(settings, untagged),
        "pairs": _digest([x for arrays in pairs for x in arrays]),
        "at_once": chosen._asdict(),
        "devices": 1 if mesh is None else mesh.size,
    }


def _digest(arrays) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _account(scores: HeadScores, found: Sequence[PairEffects]) -> dict[str, Any]:
    by_probe = lambda values: dict(zip(scores.probes, values, strict=True))
    return {
        "skipped": by_probe([e.skipped for e in found]),
        "clean_readout": by_probe(scores.clean_P.tolist()),
        "corrupted_readout": by_probe(scores.corrupted_P.tolist()),
        "critical_heads": int(scores.critical_LN.sum()),
        "receivers": int(scores.receivers_LN.sum()),
        "convertible_heads": int(scores.convertible_LN.sum()),
        "heads": int(scores.softmax_LN.sum()),
        "gini_by_layer": scores.gini_L.tolist(),
    }
