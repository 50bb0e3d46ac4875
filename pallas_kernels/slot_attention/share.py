"""Computes the share of a written token in a slot."""

import jax
import jax.numpy as jnp


@jax.custom_jvp
def written_share(log_forget):
    """Returns 1 - exp(log_forget), exact for small gates too.

    JAX's own derivative of expm1 is expm1 + 1, which rounds to 0 where a gate forgets nearly all.
    """
    return -jnp.expm1(log_forget)


@written_share.defjvp
def _derivative(primals, tangents):
    (log_forget,), (change,) = primals, tangents
    return written_share(log_forget), -jnp.exp(log_forget) * change
