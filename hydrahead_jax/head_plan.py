"""Which query heads of which layer stay softmax: the central data type."""

import dataclasses
import json
from pathlib import Path

from hydrahead_jax.config import Hydra, HydraChoices, ModelConfig


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
        for layer, heads in enumerate(self.fa_heads):
            if list(heads) != sorted(set(heads)) or any(
                not 0 <= h < self.query_heads for h in heads
            ):
                raise ValueError(
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

    def student(self, teacher: ModelConfig, choices: HydraChoices = HydraChoices()) -> ModelConfig:
        """The hybrid's config.

        Raises:
          ValueError: the plan is for a model of another shape.
        """
        mine = (len(self.fa_heads), self.query_heads, self.kv_heads)
        theirs = (teacher.layers, teacher.query_heads, teacher.kv_heads)
        if mine != theirs:
            raise ValueError(
                f"the head plan is for {mine} layers, query heads and KV heads, "
                f"the model has {theirs}"
            )
        mixers = tuple(Hydra(fa_heads=heads, choices=choices) for heads in self.fa_heads)
        return dataclasses.replace(teacher, mixers=mixers)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "HeadPlan":
        """Raises ValueError, with the file's name, where it is not a head plan."""
        try:
            fields = json.loads(Path(path).read_text())
            fields["fa_heads"] = tuple(tuple(heads) for heads in fields["fa_heads"])
            return cls(**fields)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a head plan: {error}") from error
