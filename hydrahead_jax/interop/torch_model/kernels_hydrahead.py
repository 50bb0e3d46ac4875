"""Calls the fast kernels of two other packages where they are installed and tensors are on a GPU.

flash-linear-attention (`fla`) computes the gated delta rule, causal-conv1d the convolution. Each
function of this module returns None where PyTorch's own operations are needed: on a CPU, in
float32, while a graph is traced, and without a package whose functions are the expected ones.
"""

import functools
import importlib
import inspect

import torch
from transformers.utils import logging
from transformers.utils.import_utils import is_tracing

logger = logging.get_logger(__name__)

RECURRENT_TOKENS = 64
"""Up to so many tokens are run one by one, unless gradients are needed."""

_RULE = ("q", "k", "v", "g", "beta", "scale", "initial_state", "output_final_state", "cu_seqlens")
_CONV = ("x", "weight", "bias", "seq_idx", "initial_states", "activation")
_UPDATE = ("x", "conv_state", "weight", "bias", "activation")
_PACKAGES = {
    "flash-linear-attention": {
        "module": "fla.ops.gated_delta_rule",
        "functions": {"chunk_gated_delta_rule": _RULE, "fused_recurrent_gated_delta_rule": _RULE},
        "slow": "the gated delta rule",
    },
    "causal-conv1d": {
        "module": "causal_conv1d",
        "functions": {"causal_conv1d_fn": _CONV, "causal_conv1d_update": _UPDATE},
        "slow": "the short convolution",
    },
}


def delta_rule(q_BTNH, k_BTNH, v_BTNP, log_decay_BTN, beta_BTN, state_BNHP, documents_BT=None):
    """Runs the gated delta rule by flash-linear-attention, or returns None.

    Args:
      q_BTNH, k_BTNH, v_BTNP: bfloat16 or float16; queries not yet scaled by H**-0.5.
      log_decay_BTN, beta_BTN: float32, zero on padding.
      state_BNHP: float32, before the first token; None for zeros.
      documents_BT: a number for each document of a packed row, or None.

    Returns:
      The output in the dtype of v, and the state after the last token of each row in float32.
    """
    x_BTNX = (q_BTNH, k_BTNH, v_BTNP)
    if not _can_run(*x_BTNX) or q_BTNH.dtype == torch.float32 or q_BTNH.shape[-1] > 256:
        return None
    if documents_BT is not None and state_BNHP is not None:
        return None
    if (functions := _functions("flash-linear-attention")) is None:
        return None
    chunked, recurrent = functions
    inputs = [*x_BTNX, log_decay_BTN, beta_BTN]
    cu_seqlens = last_B = None
    if documents_BT is not None:
        cu_seqlens, last_B = _boundaries(documents_BT.expand(q_BTNH.shape[:2]))
        inputs = [x.flatten(0, 1)[None] for x in inputs]
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    rule = recurrent if q_BTNH.shape[1] <= RECURRENT_TOKENS and not learns else chunked
    q, k, v, g, beta = (x.contiguous() for x in inputs)
    out, state = rule(
        q=q,
        k=k,
        v=v,
        g=g,
        beta=beta,
        scale=q.shape[-1] ** -0.5,
        initial_state=None if state_BNHP is None else state_BNHP.contiguous(),
        output_final_state=True,
        cu_seqlens=cu_seqlens,
    )
    if last_B is not None:
        state = state[last_B]
    return out.reshape(v_BTNP.shape), state.float()


def causal_conv(x_BTM, tail_BMW, weight_MW, silu: bool, documents_BT=None):
    """Runs the convolution of each channel by causal-conv1d, or returns None.

    Args:
      x_BTM: inputs.
      tail_BMW: the inputs before them, one fewer than taps; None for zeros.
      weight_MW: 2 to 4 taps, of which the last belongs to the token itself.
      silu: whether silu follows.
      documents_BT: a number for each document of a packed row; there is no tail then.
    """
    M, taps = weight_MW.shape
    if not _can_run(x_BTM) or M % 8 or not 2 <= taps <= 4:
        return None
    if (functions := _functions("causal-conv1d")) is None:
        return None
    whole, update = functions
    x_BTM = x_BTM.contiguous()
    options = {"weight": weight_MW.contiguous(), "bias": None}
    options["activation"] = "silu" if silu else None
    if tail_BMW is not None:
        tail_BMW = tail_BMW.to(x_BTM.dtype)
        learns = torch.is_grad_enabled() and any(x.requires_grad for x in (x_BTM, weight_MW))
        if x_BTM.shape[1] == 1 and not learns:
            state_BMW = tail_BMW.clone(memory_format=torch.contiguous_format)
            return update(x=x_BTM[:, 0], conv_state=state_BMW, **options)[:, None]
        # Channels side by side, as in the inputs.
        tail_BMW = tail_BMW.transpose(1, 2).contiguous().transpose(1, 2)
    seq_idx = None
    if documents_BT is not None:
        seq_idx = documents_BT.to(torch.int32).expand(x_BTM.shape[0], -1).contiguous()
    x_BMT = x_BTM.transpose(1, 2)
    return whole(x=x_BMT, initial_states=tail_BMW, seq_idx=seq_idx, **options).transpose(1, 2)


def _can_run(*tensors) -> bool:
    """Says whether all of them are on a GPU, of one dtype, and no graph is being traced."""
    first = tensors[0]
    return (
        first.device.type == "cuda"
        and not is_tracing(first)
        and all(x.dtype == first.dtype for x in tensors)
    )


def _boundaries(documents_BT):
    """Returns where documents start, with all rows joined to one.

    Returns:
      The starts of all documents and the end, and the last document of each row.
    """
    B, T = documents_BT.shape
    begins_BT = torch.ones_like(documents_BT, dtype=torch.bool)
    begins_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    starts = begins_BT.flatten().nonzero()[:, 0]
    return torch.cat([starts, starts.new_tensor([B * T])]), begins_BT.sum(1).cumsum(0) - 1


@functools.cache
def _functions(package: str):
    """Returns the functions of a package, or None; says once which way was chosen."""
    details = _PACKAGES[package]
    try:
        module = importlib.import_module(details["module"])
        functions = [getattr(module, name) for name in details["functions"]]
        for function, names in zip(functions, details["functions"].values(), strict=True):
            _check_signature(function, names)
    except Exception as error:
        first_line = f"{type(error).__name__}: {error}".splitlines()[0]
        logger.warning(
            f"HydraHead runs {details['slow']} by PyTorch's own operations, many times slower than "
            f"the kernels of {package}, which cannot be used ({first_line}). To have them: "
            f"pip install -U {package}"
        )
        return None
    logger.info(f"HydraHead runs {details['slow']} by {package} on this GPU")
    return functions


def _check_signature(function, names):
    """Raises where arguments are unknown, others are required, or a changed layout is default.

    An error is better than a wrong number.
    """
    parameters = dict(inspect.signature(function).parameters)
    missing = [name for name in names if name not in parameters]
    if missing:
        raise TypeError(f"{function.__name__} has no argument {', '.join(missing)}")
    for name, parameter in parameters.items():
        optional = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if name not in names and not optional and parameter.default is parameter.empty:
            raise TypeError(f"{function.__name__} requires an unknown argument {name}")
        if name not in names and parameter.default is True:
            raise TypeError(f"{function.__name__} has the unknown default {name}=True")
