"""Implementations of the gated delta rule side by side: ours, and others' where installed."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import gated_delta
from pallas_kernels.report.gated_delta import Shape, implementations, inputs
from tests.kernels.cases import Case, Inputs
from tests.kernels.oracle import Results, cotangents, with_gradients

_TORCH_DEVICE = "cuda"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """One implementation.

    Attributes:
      results: Inputs -> Results, to be checked.
      calls: Shape -> what runs its forward, and its backward after one forward.
      wait: blocks until the results of such calls are there.
      takes: whether it promises to get a case right.
    """

    name: str
    results: Callable[[Inputs], Results]
    calls: Callable[[Shape], tuple[Callable, Callable]]
    wait: Callable = jax.block_until_ready
    takes: Callable[[Case], bool] = lambda case: True


def contestants(names: list[str] | None = None) -> list[Contestant]:
    """Those named; without names, all that this machine has a device and packages for."""
    platform = jax.default_backend()
    wanted = names or [
        *(name for name in implementations() if name != "reference" or platform == "cpu"),
        *(["fla"] if platform == "gpu" and _installed("fla") else []),
        *(["tokamax KDA"] if platform == "tpu" and _installed("tokamax") else []),
    ]
    makers = {"fla": fla, "tokamax KDA": tokamax_kda}
    return [makers[name]() if name in makers else ours(name) for name in wanted]


def ours(name: str) -> Contestant:
    return _of_jax(name, functools.partial(_ours, name))


def tokamax_kda() -> Contestant:
    """Kimi Delta Attention: a decay for each key channel, here all alike. More work than ours.

    It takes beta up to 1, one value head a key head, and lengths that are multiples of 64.
    """
    takes = lambda case: (case.beta or 0) <= 1 and case.key_heads == case.value_heads
    return _of_jax("tokamax KDA", _tokamax, takes=takes)


def fla() -> Contestant:
    """flash-linear-attention's chunked form, in PyTorch on the GPU."""
    import torch

    return Contestant(
        name="fla",
        results=_fla_results,
        calls=_fla_calls,
        wait=lambda _: torch.cuda.synchronize(),
    )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _of_jax(name: str, run, takes=lambda case: True) -> Contestant:
    """`run(q, k, v, log_decay, beta, state or None) -> (out, state)`."""

    def calls(shape: Shape):
        *arrays, cotangent = inputs(shape, "forward+backward")
        forward = jax.jit(lambda *x: run(*x, None))
        backward = jax.jit(lambda pull, out: pull((out, jnp.zeros_like(state))))
        (_, state), pull = jax.jit(lambda *x: jax.vjp(lambda *y: run(*y, None), *x))(*arrays)
        return lambda: forward(*arrays), lambda: backward(pull, cotangent)

    results = with_gradients(lambda *x: run(*x[:6]))
    return Contestant(name=name, results=results, calls=calls, takes=takes)


def _ours(name, q, k, v, log_decay, beta, state):
    return gated_delta(q, k, v, log_decay, beta, initial_state_BNHP=state, implementation=name)


def _tokamax(q, k, v, log_decay, beta, state):
    from tokamax.ops import kimi_delta_attention

    head_first = lambda x: jnp.moveaxis(x, 2, 0)
    gate_BTNH = jnp.broadcast_to(log_decay[..., None], (*log_decay.shape, k.shape[-1]))
    out_NBTP, state_B1NHP = kimi_delta_attention(
        *map(head_first, (q, k, v, gate_BTNH, beta)),
        initial_state=None if state is None else state[:, None],
        output_final_state=True,
        implementation="mosaic",
    )
    return jnp.moveaxis(out_NBTP, 0, 2), state_B1NHP[:, 0]


def _fla(*arrays):
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    q, k, v, log_decay, beta, *state = arrays
    return chunk_gated_delta_rule(
        q,
        k,
        v,
        g=log_decay,
        beta=beta,
        initial_state=state[0] if state else None,
        output_final_state=True,
    )


def _to_torch(x):
    import torch

    tensor = torch.from_numpy(np.array(x.astype(jnp.float32)))
    return tensor.to(_TORCH_DEVICE, getattr(torch, str(x.dtype)))


def _from_torch(tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _fla_results(arrays: Inputs) -> Results:
    import torch

    tensors = [_to_torch(x).requires_grad_() for x in arrays[:6]]
    outputs = _fla(*tensors)
    gradients = torch.autograd.grad(outputs, tensors, list(map(_to_torch, cotangents(arrays))))
    return Results(*map(_from_torch, (*outputs, *gradients)))


def _fla_calls(shape: Shape):
    import torch

    *tensors, cotangent = map(_to_torch, inputs(shape, "forward+backward"))

    def forward():
        with torch.no_grad():
            return _fla(*tensors)

    tracked = [x.clone().requires_grad_() for x in tensors]
    out, _ = _fla(*tracked)
    backward = lambda: torch.autograd.grad(out, tracked, cotangent, retain_graph=True)
    return forward, backward
