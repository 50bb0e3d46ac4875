"""Benchmarks the gated delta rule: ours, and others' where installed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contestant import Contestant, installed
from pallas_kernels import gated_delta
from pallas_kernels.gated_delta.shapes import Shape, shapes
from pallas_kernels.report.gated_delta import flops, implementations, inputs, least_bytes
from tests.pallas_kernels.gated_delta.cases import HOSTILE, LENGTHS, Case, make_inputs
from tests.pallas_kernels.gated_delta.oracle import Results, cotangents, float64_results
from tests.pallas_kernels.gated_delta.suite import GATED_DELTA

__all__ = ["contestants", "flops", "hostile_cases", "least_bytes", "shapes", "too_far"]
LINEAR = True  # time is linear in the length
_TORCH_DEVICE = "cuda"
too_far = functools.partial(GATED_DELTA.too_far, dtype="bfloat16")


def hostile_cases(head_size: int) -> list[Case]:
    """Returns hostile cases in bf16, at the timed head size, with and without grouped heads."""
    base = [LENGTHS[-1], *(case for case in HOSTILE if case.segments == "one")]
    sizes = {"length": 192, "batch": 1, "key_dim": head_size, "value_dim": head_size}
    return [
        dataclasses.replace(case, **sizes, key_heads=keys, value_heads=2, dtype="bfloat16")
        for keys in (1, 2)
        for case in base
    ]


def contestants(names: list[str] | None = None) -> list[Contestant]:
    """Returns those named; without names, all that this machine has a device and packages for."""
    platform = jax.default_backend()
    wanted = names or [
        *(name for name in implementations() if name != "reference" or platform == "cpu"),
        *(["fla"] if platform == "gpu" and installed("fla") else []),
        *(["tokamax KDA"] if platform == "tpu" and installed("tokamax") else []),
    ]
    makers = {"fla": fla, "tokamax KDA": tokamax_kda}
    return [makers[name]() if name in makers else ours(name) for name in wanted]


def ours(name: str) -> Contestant:
    return _of_jax(name, functools.partial(_ours, name))


def tokamax_kda() -> Contestant:
    """Describes Kimi Delta Attention: more work than ours, because each key channel has a decay.

    Here all channels have the same decay. It takes beta up to 1, one value head a key head, and
    lengths that are multiples of 64.
    """
    takes = lambda case: (case.beta or 0) <= 1 and case.key_heads == case.value_heads
    return _of_jax("tokamax KDA", _tokamax, takes=takes, peer=True)


def fla() -> Contestant:
    """Describes flash-linear-attention's chunked form, in PyTorch on the GPU."""
    import torch

    return Contestant(
        name="fla",
        results=lambda case: _fla_results(make_inputs(case)),
        exact=_exact,
        calls=_fla_calls,
        wait=lambda _: torch.cuda.synchronize(),
        peer=True,
    )


def _exact(case: Case) -> Results:
    return float64_results(make_inputs(case))


def _of_jax(name: str, run, **settings) -> Contestant:
    """Makes a contestant of `run(q, k, v, log_decay, beta, state or None) -> (out, state)`."""

    def calls(shape: Shape):
        *arrays, cotangent = inputs(shape, "forward+backward")
        forward = jax.jit(lambda *x: run(*x, None))
        backward = jax.jit(lambda pull, out: pull((out, jnp.zeros_like(state))))
        (_, state), pull = jax.jit(lambda *x: jax.vjp(lambda *y: run(*y, None), *x))(*arrays)
        return lambda: forward(*arrays), lambda: backward(pull, cotangent)

    compiled = GATED_DELTA.with_gradients(lambda *x: run(*x[:6]))
    results = lambda case: compiled(make_inputs(case))
    return Contestant(name=name, results=results, exact=_exact, calls=calls, **settings)


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


def _fla_results(arrays) -> Results:
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
