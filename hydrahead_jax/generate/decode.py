"""One token at a time, in one compiled loop."""

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
    stop_token: int | None = None,
    edits: dict[int, HeadEdit] | None = None,
) -> jax.Array:
    """Draws `steps` tokens a row, int32 [B, steps].

    The loop ends early when every row has drawn `stop_token`; what follows a row's first stop
    token means nothing. The cache must have room for `steps` - 1 tokens. `edits` are made at every
    token, see `generate`.
    """
    model = merge(config, params)
    token_B = sample(logits_BV, jax.random.fold_in(key, 0), sampling).astype(jnp.int32)
    out_BT = jnp.zeros((token_B.shape[0], steps), jnp.int32).at[:, 0].set(token_B)
    stopped = lambda token_B: (
        jnp.zeros_like(token_B, bool) if stop_token is None else (token_B == stop_token)
    )

    def running(carry):
        step, _, _, done_B, _ = carry
        return (step < steps) & ~jnp.all(done_B)

    def advance(carry):
        step, token_B, cache, done_B, out_BT = carry
        output = model(token_B[:, None], cache=cache, edits=edits)
        logits_BV = model.logits(output.hidden_BTD[:, 0])
        token_B = sample(logits_BV, jax.random.fold_in(key, step), sampling).astype(jnp.int32)
        out_BT = jax.lax.dynamic_update_slice_in_dim(out_BT, token_B[:, None], step, axis=1)
        return step + 1, token_B, output.cache, done_B | stopped(token_B), out_BT

    carry = (jnp.ones((), jnp.int32), token_B, cache, stopped(token_B), out_BT)
    return jax.lax.while_loop(running, advance, carry)[-1]
