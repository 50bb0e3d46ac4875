"""Draws the next token from logits."""

import dataclasses
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hydrahead_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Says how the next token is drawn.

    Attributes:
      temperature: 0 takes the most likely token.
      top_k: only the k most likely tokens; all if None.
      top_p: only the smallest set of most likely tokens whose probabilities reach p; all if None.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        if not _is_number(self.temperature) or not _is_scale(self.temperature):
            raise UserError(
                f"temperature is {self.temperature!r}; give 0 (greedy) or a positive finite number"
            )
        if self.top_k is not None and not (
            _is_number(self.top_k, numbers.Integral) and self.top_k > 0
        ):
            raise UserError(f"top_k is {self.top_k!r}; give 1 or more")
        if self.top_p is not None and not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise UserError(f"top_p is {self.top_p!r}; give a probability above 0 and up to 1")


def _is_number(value, kind=numbers.Real) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_scale(temperature: float) -> bool:
    """Says whether float32 logits can be divided by the temperature.

    The device takes smaller numbers for 0.
    """
    limits = np.finfo(np.float32)
    return temperature == 0 or float(limits.tiny) <= temperature <= float(limits.max)


def sample(logits_BV: Float[Array, "B V"], key: jax.Array, sampling: Sampling) -> Int[Array, " B"]:
    """Draws one token per row.

    A row's draw depends on the key and its row number, not on other rows.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1)
    logits_BV = logits_BV.astype(jnp.float32)
    logits_BV = (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) / sampling.temperature
    if sampling.top_k is not None:
        logits_BV = _keep_top_k(logits_BV, sampling.top_k)
    if sampling.top_p is not None:
        logits_BV = _keep_top_p(logits_BV, sampling.top_p)
    rows_B = jnp.arange(logits_BV.shape[0])
    keys_B = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows_B)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV)


def _keep_top_k(logits_BV, k: int):
    least_B1 = jax.lax.top_k(logits_BV, min(k, logits_BV.shape[-1]))[0][:, -1:]
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)


def _keep_top_p(logits_BV, p: float):
    """Keeps a token if the more likely ones sum to less than p; always keeps the likeliest."""
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
    kept_BV = (before_BV < p) | (jnp.arange(logits_BV.shape[-1]) == 0)
    least_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
