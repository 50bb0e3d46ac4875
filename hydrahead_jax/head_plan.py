"""Says which query heads of which layer stay softmax: the central data type."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp

from hydrahead_jax.config import Hydra, HydraChoices, ModelConfig
from hydrahead_jax.dataclass_json import from_plain, to_plain, untagged
from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import write_json
from hydrahead_jax.local_path import local_path

_DEFAULT_CHOICES = HydraChoices()


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadPlan:
    """Says which query heads of which layer stay softmax.

    Attributes:
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
        """Counts the softmax query heads in all layers."""
        return sum(len(heads) for heads in self.fa_heads)

    @property
    def surviving_kv_heads(self) -> int:
        """Counts the KV heads, in all layers, that some softmax head still reads."""
        group = self.query_heads // self.kv_heads
        return sum(len({head // group for head in heads}) for heads in self.fa_heads)

    def kv_bytes_per_token(self, config: ModelConfig, dtype: str = "bfloat16") -> int:
        """Returns the bytes of cached keys and values that one token adds in all layers."""
        return self.surviving_kv_heads * kv_head_bytes(config, dtype)

    def check(self, config: ModelConfig, *, tensor_multiple: int = 1) -> None:
        """Raises UserError where the plan does not suit a model or a mesh.

        Args:
          config: of the model; it may be a hybrid already.
          tensor_multiple: must divide the softmax heads, and the delta-rule heads, of every layer.
        """
        if tensor_multiple < 1:
            raise UserError(f"tensor_multiple={tensor_multiple} must be at least 1")
        mine = (len(self.fa_heads), self.query_heads, self.kv_heads)
        theirs = (config.layers, config.query_heads, config.kv_heads)
        if mine != theirs:
            names = ("layers", "query heads in a layer", "KV heads in a layer")
            differences = [
                f"{ours} {name}, the model has {other}"
                for name, ours, other in zip(names, mine, theirs, strict=True)
                if ours != other
            ]
            raise UserError(
                f"the head plan is for another model: {'; '.join(differences)}; use a plan made "
                "for this model"
            )
        for layer, heads in enumerate(self.fa_heads):
            linear = sorted(set(heads) - set(config.softmax_heads(layer)))
            if linear:
                raise UserError(
                    f"head plan, layer {layer}: heads {linear} are delta-rule heads in the model "
                    "and cannot become softmax again; choose other heads"
                )
            counts = (len(heads), self.query_heads - len(heads))
            if any(count % tensor_multiple for count in counts):
                raise UserError(
                    f"head plan, layer {layer}: {counts[0]} softmax and {counts[1]} delta-rule "
                    f"heads are not multiples of {tensor_multiple}; allocate with "
                    f"tensor_multiple={tensor_multiple}"
                )

    def student(
        self, teacher: ModelConfig, choices: HydraChoices = _DEFAULT_CHOICES
    ) -> ModelConfig:
        """Returns the hybrid's config.

        Raises:
          UserError: the plan does not suit the model, see `check`.
        """
        self.check(teacher)
        mixers = tuple(Hydra(fa_heads=heads, choices=choices) for heads in self.fa_heads)
        return dataclasses.replace(teacher, mixers=mixers)

    def save(self, path: Path) -> None:
        """Writes JSON; a failure leaves no incomplete file."""
        write_json(local_path(path), to_plain(self, untagged))

    @classmethod
    def load(cls, path: Path) -> "HeadPlan":
        """Raises UserError, with the file's name, where it is not a head plan."""
        path = local_path(path)
        try:
            fields = json.loads(path.read_text(encoding="utf-8-sig"))
            return from_plain(cls, fields, tags=untagged)
        except OSError as error:
            raise UserError(
                f"{path} is not a head plan: {error.strerror}; make one by `python -m train select`"
            ) from error
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path} is not a head plan: {error}; make one by `python -m train select`"
            ) from error


def kv_head_bytes(config: ModelConfig, dtype: str = "bfloat16") -> int:
    """Returns the bytes of one token's key and value in one KV head.

    Raises:
      UserError: there is no such dtype.
    """
    try:
        return 2 * config.head_dim * jnp.dtype(dtype).itemsize
    except TypeError as error:
        raise UserError(f"{dtype!r} is not a dtype of a cache; use one such as bfloat16") from error
