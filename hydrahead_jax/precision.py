"""Says in which precision parameters are stored and computed with."""

from typing import Literal

import jax
import jax.numpy as jnp
import jmp

Precision = Literal["auto", "float32", "bfloat16"]

# exp(A_log) and softplus(dt_bias) set memory spans of thousands of tokens, and gamma scales
# all of a head: their rounding in bfloat16 is not noise that averages out.
_ALWAYS_FLOAT32 = ("a_log_N", "dt_bias_N", "gamma_N")


def training_policy(precision: Precision = "auto") -> jmp.Policy:
    """Returns the policy of float32 master parameters.

    "auto" computes in bfloat16 on TPU and GPU and in float32 on CPU.
    """
    if precision == "auto":
        precision = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    dtype = jnp.dtype(precision)
    return jmp.Policy(param_dtype=jnp.float32, compute_dtype=dtype, output_dtype=jnp.float32)


def compute_params(policy: jmp.Policy, params: dict) -> dict:
    """Returns the parameters to compute with."""

    def cast(path, leaf):
        return leaf if path[-1].key in _ALWAYS_FLOAT32 else policy.cast_to_compute(leaf)

    return jax.tree_util.tree_map_with_path(cast, params)
