"""Defines the settings of a selection of heads."""

import dataclasses
from typing import Literal

from hydrahead_jax.selection import SelectionSettings
from hydrahead_jax.selection.checks.knockout import KnockOutSettings
from hydrahead_jax.selection.checks.stability import StabilitySettings
from hydrahead_jax.selection.plans.allocate import DEFAULT
from train.data.text import TextSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Describes a selection of heads: the model, the plan, the probes, and the checks.

    Attributes:
      run: folder of the results; a run that is killed continues there.
      teacher: Hugging Face folder of a Qwen3 model, or folder of a finished run, whose softmax
        heads are then scored.
      strategy: one of `hydrahead_jax.selection.STRATEGIES`.
      ratio: delta-rule heads to softmax heads, such as "3:1"; may be None beside kv_bytes.
      kv_bytes: most bytes of keys and values that a token may add to the cache, in all layers.
      kv_slack: share of the score mass that may be given up to save KV heads.
      kv_dtype: dtype of the cache.
      tensor_multiple: divides the softmax heads of every layer.
      text: text that the probes' needles are put into.
      general: JSON-lines files of general ability, each a sub-probe.
      settings: settings of the probes and the scores.
      knock_out: settings of the knock-out check; None leaves it out.
      stability: settings of the stability check; None leaves it out.
      dtype: dtype of the parameters; scores are good to 1e-5 with float32.
      devices: devices that the pairs are spread over; the parameters are split between them.
      seed: seed of drawn plans and of ties.
    """

    run: str
    teacher: str
    strategy: str = DEFAULT
    ratio: str | None = "3:1"
    kv_bytes: int | None = None
    kv_slack: float | None = None
    kv_dtype: str = "bfloat16"
    tensor_multiple: int = 1
    text: TextSource = TextSource()
    general: tuple[str, ...] = ()
    settings: SelectionSettings = SelectionSettings()
    knock_out: KnockOutSettings | None = KnockOutSettings()
    stability: StabilitySettings | None = StabilitySettings()
    dtype: Literal["float32", "bfloat16"] = "float32"
    devices: int = 1
    seed: int = 0
