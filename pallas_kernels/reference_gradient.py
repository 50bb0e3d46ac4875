"""Gives kernels without a backward the gradient of their reference."""

import functools

import jax

from pallas_kernels.batching import vmap_into_batch
from pallas_kernels.varying import vary_alike


def with_gradient_of(reference):
    """Makes `kernel(*arrays, **settings)` differentiable.

    Its gradient is that of `reference(*arrays, **settings)`. The result also works under `jax.vmap`
    and `jax.shard_map`.
    """

    def decorate(kernel):
        def call(*arrays, **settings):
            forward = functools.partial(kernel, **settings)

            @jax.custom_vjp
            def rule(*arrays):
                return vmap_into_batch(forward)(*arrays)

            def backward(arrays, cotangents):
                return jax.vjp(functools.partial(reference, **settings), *arrays)[1](cotangents)

            rule.defvjp(lambda *arrays: (rule(*arrays), arrays), backward)
            return rule(*vary_alike(*arrays))

        return functools.update_wrapper(call, kernel)

    return decorate
