"""Decodes one token at a time, in one compiled loop."""

import jax
import jax.numpy as jnp

from hydrahead_jax.cache import Cache
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.generate.sampling import Sampling, sample
from hydrahead_jax.mixers import HeadEdit
from hydrahead_jax.models import merge


def decode(
    config: ModelConfig,
    params: dict,
    logits_BV: jax.Array,
    cache: Cache,
    key: jax.Array,
    *,
    steps: int,
    sampling: Sampling,
    stop_tokens: tuple[int, ...] = (),
    edits: dict[int, HeadEdit] | None = None,
) -> jax.Array:
    """Draws `steps` tokens per row, int32 [B, steps].

    The loop ends early when every row has drawn one of the `stop_tokens`. After that token a row
    repeats it up to its end. The cache must have room for `steps` - 1 tokens. `edits` are made at
    every token, see `generate`.
    """
    model = merge(config, params)
    token_B = sample(logits_BV, jax.random.fold_in(key, 0), sampling).astype(jnp.int32)
    out_BT = jnp.zeros((token_B.shape[0], steps), jnp.int32).at[:, 0].set(token_B)
    stopped = lambda token_B: jnp.isin(token_B, jnp.array(stop_tokens, jnp.int32))

    def running(carry):
        step, _, _, done_B, _ = carry
        return (step < steps) & ~jnp.all(done_B)

    def advance(carry):
        step, token_B, cache, done_B, out_BT = carry
        output = model(token_B[:, None], cache=cache, edits=edits)
        logits_BV = model.logits(output.hidden_BTD[:, 0])
        new_B = sample(logits_BV, jax.random.fold_in(key, step), sampling).astype(jnp.int32)
        token_B = jnp.where(done_B, token_B, new_B)
        out_BT = jax.lax.dynamic_update_slice_in_dim(out_BT, token_B[:, None], step, axis=1)
        return step + 1, token_B, output.cache, done_B | stopped(token_B), out_BT

    carry = (jnp.ones((), jnp.int32), token_B, cache, stopped(token_B), out_BT)
    steps_done, token_B, _, _, out_BT = jax.lax.while_loop(running, advance, carry)
    return jnp.where(jnp.arange(steps) < steps_done, out_BT, token_B[:, None])


def until_stop(reply: list[int], stop_tokens: tuple[int, ...]) -> list[int]:
    """Returns the tokens before the first stop token; all where there is none."""
    ends = (place for place, token in enumerate(reply) if token in stop_tokens)
    return reply[: next(ends, len(reply))]
