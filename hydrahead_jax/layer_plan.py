"""Says which layers of a teacher become native hybrid attention, and how."""

import dataclasses

from hydrahead_jax.config import ModelConfig, NativeHybrid
from hydrahead_jax.dataclass_json import RECORDED_IF_SET
from hydrahead_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class NativeHybridPlan:
    """Makes every layer native hybrid attention; some of them see all tokens (arXiv 2510.07019).

    Attributes:
      window: nearest tokens that a query sees in the other layers; see `NativeHybrid`.
      slots: M; it divides the head dim, because gates start as means of rows of the key projection.
      sinks: see `NativeHybrid`.
      gate_normaliser: see `NativeHybrid`.
      value_silu: see `NativeHybrid`; for models from scratch, as the other two.
      output_norm: see `NativeHybrid`.
      qk_norm: see `NativeHybrid`.
      global_every: the last of every so many layers sees all tokens.
      global_layers: layers that see all tokens, in place of `global_every`.
    """

    window: int = 32
    slots: int = 64
    sinks: bool = True
    gate_normaliser: float = 8.0
    value_silu: bool = dataclasses.field(default=False, metadata=RECORDED_IF_SET)
    output_norm: bool = dataclasses.field(default=False, metadata=RECORDED_IF_SET)
    qk_norm: bool = dataclasses.field(default=True, metadata=RECORDED_IF_SET)
    global_every: int = 8
    global_layers: tuple[int, ...] | None = None

    def __post_init__(self):
        self.mixer(self.window)
        if self.global_every < 1:
            raise ValueError(f"global_every={self.global_every} must be 1 or more")
        layers = self.global_layers or ()
        if list(layers) != sorted(set(layers)) or any(layer < 0 for layer in layers):
            raise ValueError(f"global_layers={layers} must be ascending, unique and 0 or more")

    def mixer(self, window: int | None) -> NativeHybrid:
        """Returns the mixer of a layer with that window."""
        return NativeHybrid(
            window=window,
            slots=self.slots,
            sinks=self.sinks,
            gate_normaliser=self.gate_normaliser,
            value_silu=self.value_silu,
            output_norm=self.output_norm,
            qk_norm=self.qk_norm,
        )

    def mixers(self, layers: int) -> tuple[NativeHybrid, ...]:
        """Returns the mixers of a model with so many layers.

        Raises:
          UserError: a global layer is not among them.
        """
        if self.global_layers is None:
            everything = set(range(self.global_every - 1, layers, self.global_every))
        else:
            everything = set(self.global_layers)
        if everything and max(everything) >= layers:
            raise UserError(
                f"global_layers: there is no layer {max(everything)} in a model of {layers} "
                f"layers; use layers from 0 to {layers - 1}"
            )
        windows = (None if layer in everything else self.window for layer in range(layers))
        return tuple(map(self.mixer, windows))

    def student(self, teacher: ModelConfig) -> ModelConfig:
        """Returns the hybrid's config.

        Raises:
          UserError: a global layer, the number of slots, or the form of the mixer does not suit the
            teacher.
        """
        check_from_teacher(self.mixer(None))
        check_slots(self.slots, teacher.head_dim)
        return dataclasses.replace(teacher, mixers=self.mixers(teacher.layers))


def check_from_teacher(mixer: NativeHybrid) -> None:
    """Raises UserError where a mixer computes what no teacher's weights are for."""
    if mixer.from_scratch:
        raise UserError(
            f"native hybrid attention with {', '.join(mixer.from_scratch)} cannot be made from a "
            "teacher, which has QK norm, and neither SiLU on values nor an output norm; leave "
            "these values at their defaults, or train from scratch by `python -m train pretrain`"
        )


def check_slots(slots: int, head_dim: int) -> None:
    """Raises UserError where gates cannot start as means of equal groups of key rows."""
    if head_dim % slots:
        fitting = [n for n in range(1, head_dim + 1) if head_dim % n == 0]
        nearest = min(fitting, key=lambda n: (abs(n - slots), n))
        raise UserError(
            f"slots={slots} does not divide the teacher's head dim of {head_dim}, whose key rows "
            f"are averaged in equal groups to start the gates; use slots={nearest}"
        )
