"""Marks a result that a library computes but cannot differentiate."""

import functools

import jax


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def without_gradient(library: str, lse_BTN, *arguments):
    """Returns `lse_BTN`; its gradient by `arguments` raises NotImplementedError."""
    return lse_BTN


def _forward(library, lse_BTN, *arguments):
    return lse_BTN, None


def _backward(library, saved, dlse_BTN):
    raise NotImplementedError(f"{library} has no gradient through the log-sum-exp")


without_gradient.defvjp(_forward, _backward)
