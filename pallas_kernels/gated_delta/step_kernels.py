"""What the decode-step kernels of all devices share: the arrays they take, and their gradient."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.batching import vmap_into_batch
from pallas_kernels.gated_delta.reference import gated_delta_step_reference
from pallas_kernels.varying import vary_alike

HEAD_DIMS = (64, 128, 256)
DTYPES = (jnp.bfloat16, jnp.float32)


def check_arrays(**arrays) -> None:
    """Refuses dtypes and head dimensions of q, k and v, by name, that the kernels do not take."""
    for name, x in arrays.items():
        if x.dtype not in DTYPES:
            raise NotImplementedError(f"{name} is {x.dtype}; bfloat16 and float32 are accepted")
        if x.shape[-1] not in HEAD_DIMS:
            raise NotImplementedError(
                f"the head dimension of {name} is {x.shape[-1]}; {HEAD_DIMS} are accepted"
            )


def with_reference_gradient(kernel):
    """`kernel(q, k, v, log_decay, beta, state, *, scale, interpret)`, made differentiable by the
    reference's gradient, and fit for `jax.vmap` and `jax.shard_map`.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    def rule(scale, interpret, *arrays):
        call = functools.partial(kernel, scale=scale, interpret=interpret)
        return vmap_into_batch(call)(*arrays)

    def forward(scale, interpret, *arrays):
        return rule(scale, interpret, *arrays), arrays

    def backward(scale, interpret, arrays, cotangents):
        reference = functools.partial(gated_delta_step_reference, scale=scale)
        return jax.vjp(reference, *arrays)[1](cotangents)

    rule.defvjp(forward, backward)
    return lambda *arrays, scale, interpret: rule(scale, interpret, *vary_alike(*arrays))
