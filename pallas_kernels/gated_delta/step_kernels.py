"""Checks what the decode-step kernels of all devices take."""

import jax.numpy as jnp

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
