"""Which query heads of which layer stay softmax: the central data type."""

import dataclasses
import json
from pathlib import Path

from hydrahead_jax.config import Hydra, HydraChoices, ModelConfig
from hydrahead_jax.errors import UserError

_DEFAULT_CHOICES = HydraChoices()


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadPlan:
    """Attributes:
    fa_heads: for each layer, the query heads that keep softmax attention, in ascending order.
    query_heads: query heads of each layer.
    kv_heads: KV heads of each layer, before any is dropped.
    strategy: how the heads were chosen, such as "global-interp".
    """

    fa_heads: tuple[tuple[int, ...], ...]
    query_heads: int
    kv_heads: int
    strategy: str

    def __post_init__(self):
        if not 0 < self.kv_heads <= self.query_heads or self.query_heads % self.kv_heads:
            raise UserError(
                f"head plan: {self.query_heads} query heads must be a multiple of "
                f"{self.kv_heads} KV heads"
            )
        for layer, heads in enumerate(self.fa_heads):
            if list(heads) != sorted(set(heads)) or any(
                not 0 <= h < self.query_heads for h in heads
            ):
                raise UserError(
                    f"head plan, layer {layer}: heads {list(heads)} must be ascending, unique and "
                    f"between 0 and {self.query_heads - 1}"
                )

    @property
    def count(self) -> int:
        """Softmax query heads in all layers."""
        return sum(len(heads) for heads in self.fa_heads)

    @property
    def surviving_kv_heads(self) -> int:
        """KV heads, in all layers, that some softmax head still reads."""
        group = self.query_heads // self.kv_heads
        return sum(len({head // group for head in heads}) for heads in self.fa_heads)

    def student(
        self, teacher: ModelConfig, choices: HydraChoices = _DEFAULT_CHOICES
    ) -> ModelConfig:
        """The hybrid's config.

        Raises:
          UserError: the plan is for a model of another shape.
        """
        mine = (len(self.fa_heads), self.query_heads, self.kv_heads)
        theirs = (teacher.layers, teacher.query_heads, teacher.kv_heads)
        if mine != theirs:
            raise UserError(
                f"the head plan is for {mine} layers, query heads and KV heads, "
                f"the model has {theirs}"
            )
        mixers = tuple(Hydra(fa_heads=heads, choices=choices) for heads in self.fa_heads)
        return dataclasses.replace(teacher, mixers=mixers)

    def save(self, path: Path) -> None:
        """Writes JSON."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "HeadPlan":
        """Raises UserError, with the file's name, where it is not a head plan."""
        try:
            fields = json.loads(Path(path).read_text())
            fields["fa_heads"] = tuple(tuple(map(_integer, heads)) for heads in fields["fa_heads"])
            for name in ("query_heads", "kv_heads"):
                _integer(fields[name])
            return cls(**fields)
        except KeyError as error:
            raise UserError(f"{path} is not a head plan: it has no {error}") from error
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} is not a head plan: {error}") from error


def _integer(value) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no whole number")
    return value
