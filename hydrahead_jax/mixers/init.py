"""Draws initial values of parameters, float32."""

import jax
import jax.numpy as jnp
from flax import nnx


def fan_in(rngs: nnx.Rngs, shape: tuple[int, ...], fan: int) -> nnx.Param:
    """Draws from a normal distribution with variance 1 / fan."""
    return nnx.Param(jax.random.normal(rngs.params(), shape) * fan**-0.5)


def ones(shape: tuple[int, ...]) -> nnx.Param:
    return nnx.Param(jnp.ones(shape))


def zeros(shape: tuple[int, ...]) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape))


def identity_conv(taps: int, heads: int, head_dim: int) -> nnx.Param:
    """Returns a delta on the last tap: the convolution starts as the identity."""
    return nnx.Param(jnp.zeros((taps, heads, head_dim)).at[-1].set(1.0))


def decay_rate(rngs: nnx.Rngs, heads: int) -> nnx.Param:
    """Returns A_log: the log of a rate drawn from U(1, 16), as Mamba2 and Gated DeltaNet start."""
    return nnx.Param(jnp.log(jax.random.uniform(rngs.params(), (heads,), minval=1.0, maxval=16.0)))


def time_step_bias(rngs: nnx.Rngs, heads: int) -> nnx.Param:
    """Returns softplus^-1 of a time step drawn log-uniformly from [1e-3, 1e-1]."""
    low, high = jnp.log(1e-3), jnp.log(1e-1)
    step_N = jnp.exp(jax.random.uniform(rngs.params(), (heads,), minval=low, maxval=high))
    return nnx.Param(step_N + jnp.log(-jnp.expm1(-step_N)))
