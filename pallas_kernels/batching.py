"""Makes `jax.vmap` of kernels one more factor of their batch."""

import jax
import jax.numpy as jnp


def vmap_into_batch(function):
    """Folds a mapped axis into axis 0 of the arguments and results of `function`.

    All arguments and results are pytrees of arrays whose axis 0 is the batch. The kernel's grid is
    the same with and without `jax.vmap`.
    """
    batched = jax.custom_batching.custom_vmap(function)

    @batched.def_vmap
    def rule(size, mapped, *arguments):
        def fold(x, is_mapped):
            x = x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        results = batched(*jax.tree.map(fold, arguments, tuple(mapped)))
        results = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), results)
        return results, jax.tree.map(lambda _: True, results)

    return batched
