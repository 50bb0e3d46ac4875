"""Checks what is asked of a plan against the model before anything is computed."""

import dataclasses
import re
from collections import Counter

import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.selection.plans.strategies import BY_LAYER, INTERP, NEED_SCORES, STRATEGIES
from hydrahead_jax.selection.scores.scores import HeadScores


def budget(config: ModelConfig, ratio: str) -> int:
    """Returns the number of softmax heads of a plan with such a ratio.

    "3:1" means three delta-rule heads for each softmax head. The number is rounded to the nearest.

    Raises:
      UserError: the ratio is not of this form, or leaves no softmax head.
    """
    parts = re.fullmatch(r"(\d+):(\d+)", ratio)
    if parts is None or int(parts[2]) == 0:
        raise UserError(f"ratio {ratio!r} must read delta-rule heads : softmax heads, such as 3:1")
    linear, softmax = int(parts[1]), int(parts[2])
    heads = config.layers * config.query_heads
    count = round(heads * softmax / (linear + softmax))
    if count == 0:
        raise UserError(f"ratio {ratio} leaves no softmax head of {heads}; use a smaller one")
    return count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Checks the arguments of `allocate`, which explains them."""

    strategy: str
    fa_heads: int | None = None
    kv_bytes: int | None = None
    kv_slack: float | None = None
    kv_dtype: str = "bfloat16"
    tensor_multiple: int = 1
    seed: int = 0

    @property
    def by_search(self) -> bool:
        """Says whether the plan is more than a beginning of the ranking."""
        by_cost = self.kv_bytes is not None or self.kv_slack is not None
        return self.strategy in INTERP and (by_cost or self.tensor_multiple > 1)

    def check(self, scores: HeadScores | None, config: ModelConfig) -> None:
        """Raises UserError where the request contradicts itself, the scores or the model."""
        if self.strategy not in STRATEGIES:
            raise UserError(f"strategy {self.strategy!r} must be one of {', '.join(STRATEGIES)}")
        _check_scores(self, scores, config)
        _check_budget(self, config)
        _check_multiple(self, config)

    def counts(self, config: ModelConfig, kv_heads: int | None) -> range:
        """Returns the softmax heads that one layer may keep; `kv_heads` are paid for."""
        every = range(self.tensor_multiple, config.query_heads + 1, self.tensor_multiple)
        if self.strategy == "global-interp":
            return range(0, every.stop, every.step)
        if self.strategy == "global-interp-C":
            return every
        if self.fa_heads is not None:
            count = self.fa_heads // config.layers
        else:
            least = {count: _least_kv_heads(config, count) for count in every}
            count = max((c for c in every if least[c] <= kv_heads), default=every.start)
        return range(count, count + 1)


def _least_kv_heads(config: ModelConfig, count: int) -> int:
    """Returns how many KV heads `count` softmax heads in every layer read at least.

    It is more than the model has where a layer has not so many heads.
    """
    total = 0
    for layer in range(config.layers):
        shared = Counter(map(config.kv_head, config.softmax_heads(layer)))
        room = np.cumsum(sorted(shared.values(), reverse=True))
        if not len(room) or room[-1] < count:
            return config.layers * config.kv_heads + 1
        total += int(np.searchsorted(room, count)) + 1
    return total


def _check_scores(request: Request, scores: HeadScores | None, config: ModelConfig) -> None:
    if scores is None:
        if request.strategy in NEED_SCORES:
            raise UserError(f"strategy {request.strategy} needs head scores")
        return
    layers, heads = config.layers, config.query_heads
    if (scores.layers, scores.query_heads) != (layers, heads):
        raise UserError(
            f"the scores are for {scores.layers} layers of {scores.query_heads} heads, the model "
            f"has {layers} of {heads}; score this model"
        )
    for layer, softmax_N in enumerate(scores.softmax_LN):
        if tuple(softmax_N.nonzero()[0].tolist()) != config.softmax_heads(layer):
            raise UserError(
                f"layer {layer}: the scores are for other softmax heads than the model has; "
                "score this model"
            )


def _check_budget(request: Request, config: ModelConfig) -> None:
    if request.fa_heads is None and request.kv_bytes is None:
        raise UserError("a plan needs a budget: fa_heads, kv_bytes, or both")
    softmax = sum(len(config.softmax_heads(layer)) for layer in range(config.layers))
    if request.fa_heads is not None and not 0 < request.fa_heads <= softmax:
        raise UserError(
            f"a budget of {request.fa_heads} softmax heads must be 1 to {softmax}, which the "
            "model has"
        )
    if request.kv_bytes is not None and request.kv_bytes < 1:
        raise UserError(f"kv_bytes={request.kv_bytes} must be at least 1")
    if request.kv_slack is not None and not 0 <= request.kv_slack < 1:
        raise UserError(f"kv_slack={request.kv_slack} must be at least 0 and below 1")
    if request.kv_slack is not None and request.kv_bytes is not None:
        raise UserError("kv_slack saves KV heads at a budget in heads; leave out kv_bytes")
    if request.strategy in INTERP:
        return
    if request.kv_slack is not None:
        raise UserError(
            f"strategy {request.strategy} does not look at KV heads; leave out kv_slack"
        )
    if request.fa_heads is not None and request.kv_bytes is not None:
        raise UserError(
            f"strategy {request.strategy} takes fa_heads or kv_bytes, not both; leave one out"
        )


def _check_multiple(request: Request, config: ModelConfig) -> None:
    multiple, strategy, fa_heads = request.tensor_multiple, request.strategy, request.fa_heads
    if multiple < 1 or config.query_heads % multiple:
        raise UserError(
            f"tensor_multiple={multiple} must divide the {config.query_heads} query heads of a "
            "layer"
        )
    if fa_heads is not None and fa_heads % multiple:
        raise UserError(f"a budget of {fa_heads} heads must be a multiple of {multiple}")
    if multiple > 1 and strategy not in INTERP + BY_LAYER:
        raise UserError(
            f"strategy {strategy} draws over all layers and takes no tensor_multiple; use "
            "layer-random"
        )
    fewest = min(len(config.softmax_heads(layer)) for layer in range(config.layers))
    if strategy == "global-interp-C" and fewest < multiple:
        raise UserError(
            f"a layer of the model has {fewest} softmax heads, and strategy {strategy} keeps at "
            f"least {multiple} in every layer; use global-interp"
        )
    if strategy == "global-interp-C" and fa_heads is not None:
        if fa_heads < multiple * config.layers:
            raise UserError(
                f"{fa_heads} softmax heads are fewer than {multiple} in each of {config.layers} "
                "layers; raise the budget, or use global-interp, which may leave layers without"
            )
    if strategy in BY_LAYER and fa_heads is not None:
        if fa_heads % (multiple * config.layers) or fa_heads > fewest * config.layers:
            raise UserError(
                f"strategy {strategy} needs a budget that is a multiple of "
                f"{multiple * config.layers}, as many heads in each of {config.layers} layers, "
                f"and at most {fewest * config.layers}, not {fa_heads}"
            )
