"""Says what a model is: sizes and, for each layer, the token mixer.

Dimension letters, used in array and parameter names everywhere:
  B batch   T query time   S key time   D embed   F mlp   V vocab   L layer
  N query heads   K key/value heads   H head dim   P value dim of the delta rule   M slot
  C chunk   Z number of chunks   W convolution tap   X anything else, said where it is used
"""

import dataclasses
import math
import reprlib
from typing import Literal

from hydrahead_jax.dataclass_json import RECORDED_IF_SET

Fusion = Literal["scale", "none", "gated"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullAttention:
    """Chooses softmax attention with RoPE on every head: the teacher's mixer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NativeHybrid:
    """Chooses native hybrid attention: one softmax over a window of tokens and slots before it.

    Attributes:
      window: nearest tokens that a query sees as they are, its own included; 0 leaves the slots
        alone. None is a global layer: it sees all tokens and has no slots.
      slots: M, the keys and values of fixed number that stand for all tokens before the window.
      sinks: slots count before anything was written to them, as keys of logit 0 and value 0; a
        global layer has M such keys.
      gate_normaliser: divides the log of the forget gates; the larger, the longer slots remember.
      value_silu: SiLU on the values.
      output_norm: SiLU on the heads, and one RMSNorm over all of a layer's together, before W_O.
      qk_norm: Qwen3's norm of queries and keys.
    """

    window: int | None
    slots: int = 64
    sinks: bool = True
    gate_normaliser: float = 8.0
    value_silu: bool = dataclasses.field(default=False, metadata=RECORDED_IF_SET)
    output_norm: bool = dataclasses.field(default=False, metadata=RECORDED_IF_SET)
    qk_norm: bool = dataclasses.field(default=True, metadata=RECORDED_IF_SET)

    def __post_init__(self):
        if self.window is not None and self.window < 0:
            raise ValueError(f"window={self.window} must be 0 or more, or None to see all tokens")
        if self.slots < 1:
            raise ValueError(f"slots={self.slots} must be 1 or more")
        if not 0 < self.gate_normaliser < math.inf:
            raise ValueError(f"gate_normaliser={self.gate_normaliser} must be positive and finite")

    @property
    def null_keys(self) -> int:
        """Counts the keys of logit 0 and value 0 that a query of a global layer sees."""
        return self.slots if self.sinks and self.window is None else 0

    @property
    def from_scratch(self) -> tuple[str, ...]:
        """Names the values that no layer made from a teacher can have."""
        values = {
            "value_silu=True": self.value_silu,
            "output_norm=True": self.output_norm,
            "qk_norm=False": not self.qk_norm,
        }
        return tuple(name for name, is_set in values.items() if is_set)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HydraChoices:
    """Says how a HydraHead layer computes; docs/architecture.md marks the paper's choices.

    Attributes:
      fusion: "scale" normalises each head and multiplies by its gamma; "gated" adds a softmax
        over the two branches, per token; "none" passes the heads on as they are.
      neg_eigval: beta in (0, 2) in place of (0, 1).
      short_conv: a 4-tap causal convolution on the q, k and v of the delta-rule heads.
      conv_silu: SiLU after that convolution.
      log_scale_base: a of the query scale ln(t + a) / ln(a) of the softmax heads.
      log_scale_in_training: apply that scale in training too, not only at inference.
      query_decomposition: separate q, k, v projections and QK norms for the two branches.
      native_hybrid: the heads that are not softmax compute native hybrid attention in place of the
        delta rule, which alone has convolutions and `neg_eigval`.
    """

    fusion: Fusion = "scale"
    neg_eigval: bool = False
    short_conv: bool = True
    conv_silu: bool = False
    log_scale_base: float = 500.0
    log_scale_in_training: bool = False
    query_decomposition: bool = True
    native_hybrid: NativeHybrid | None = dataclasses.field(default=None, metadata=RECORDED_IF_SET)

    def __post_init__(self):
        if self.fusion not in ("scale", "none", "gated"):
            raise ValueError(f"fusion={self.fusion!r} is none of 'scale', 'none', 'gated'")
        if not 1 < self.log_scale_base < math.inf:
            raise ValueError(f"log_scale_base={self.log_scale_base} must be above 1 and finite")
        if self.native_hybrid is not None and self.native_hybrid.window is None:
            raise ValueError("native_hybrid.window must be a number: softmax heads see all tokens")
        if self.native_hybrid is not None and self.native_hybrid.from_scratch:
            raise ValueError(
                f"native_hybrid has {', '.join(self.native_hybrid.from_scratch)}: heads of a "
                "HydraHead layer are made from a teacher's; leave these values at their defaults"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hydra:
    """Chooses softmax attention for `fa_heads`, a recurrence for all other query heads.

    That is the gated delta rule, or native hybrid attention if the choices say so.
    """

    fa_heads: tuple[int, ...]
    choices: HydraChoices = HydraChoices()


Mixer = FullAttention | Hydra | NativeHybrid

_SIZES = ("vocab", "embed", "mlp", "query_heads", "kv_heads", "head_dim", "max_length")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Configures a Qwen3-architecture decoder.

    `max_length` is the longest sequence it was trained for.
    """

    vocab: int
    embed: int
    mlp: int
    query_heads: int
    kv_heads: int
    head_dim: int
    mixers: tuple[Mixer, ...]
    rope_theta: float = 1e6
    rms_eps: float = 1e-6
    tied_embeddings: bool = True
    max_length: int = 40960

    def __post_init__(self):
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        for name in ("rope_theta", "rms_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be positive and finite")
        if self.query_heads % self.kv_heads:
            raise ValueError(
                f"{self.query_heads} query heads are not a multiple of {self.kv_heads} KV heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even for RoPE")
        for index, mixer in enumerate(self.mixers):
            heads = mixer.fa_heads if isinstance(mixer, Hydra) else ()
            if list(heads) != sorted(set(heads)) or any(
                not 0 <= h < self.query_heads for h in heads
            ):
                raise ValueError(
                    f"layer {index}: fa_heads={reprlib.repr(heads)} must be sorted, unique and "
                    f"below {self.query_heads}"
                )

    @property
    def layers(self) -> int:
        return len(self.mixers)

    def softmax_heads(self, layer: int) -> tuple[int, ...]:
        """Returns the query heads of a layer that are softmax attention over all tokens."""
        mixer = self.mixers[layer]
        if isinstance(mixer, Hydra):
            return mixer.fa_heads
        if isinstance(mixer, NativeHybrid) and mixer.window is not None:
            return ()
        return tuple(range(self.query_heads))

    def slot_heads(self, layer: int) -> tuple[int, ...]:
        """Returns the query heads of a layer that read slots."""
        mixer = self.mixers[layer]
        slots = mixer.choices.native_hybrid if isinstance(mixer, Hydra) else mixer
        if not isinstance(slots, NativeHybrid):
            return ()
        softmax = self.softmax_heads(layer)
        return tuple(head for head in range(self.query_heads) if head not in softmax)

    def kv_head(self, query_head: int) -> int:
        """Returns the KV head that a query head reads in the teacher."""
        return query_head // (self.query_heads // self.kv_heads)


_QWEN3 = {  # embed, mlp, query heads, layers, tied embeddings; all have 8 KV heads of width 128
    "0.6b": (1024, 3072, 16, 28, True),
    "1.7b": (2048, 6144, 16, 28, True),
    "4b": (2560, 9728, 32, 36, True),
    "8b": (4096, 12288, 32, 36, False),
    "14b": (5120, 17408, 40, 40, False),
    "32b": (5120, 25600, 64, 64, False),
}
QWEN3_SIZES = tuple(_QWEN3)


def qwen3(size: str) -> ModelConfig:
    """Returns the config of a dense Qwen3, such as qwen3("1.7b") (arXiv 2505.09388, table 1)."""
    if size.lower() not in _QWEN3:
        raise ValueError(f"no Qwen3 of size {size!r}; there are {', '.join(_QWEN3)}")
    embed, mlp, query_heads, layers, tied = _QWEN3[size.lower()]
    return ModelConfig(
        vocab=151936,
        embed=embed,
        mlp=mlp,
        query_heads=query_heads,
        kv_heads=8,
        head_dim=128,
        mixers=(FullAttention(),) * layers,
        tied_embeddings=tied,
    )
