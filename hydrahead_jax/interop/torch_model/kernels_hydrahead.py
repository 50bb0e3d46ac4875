"""The fast kernels of two other packages, used where they are installed and tensors are on a GPU.

flash-linear-attention (`fla`) computes the gated delta rule, causal-conv1d the convolution. Each
function of this module returns None where PyTorch's own operations have to do: on a CPU, in
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
        cu_seqlens, last_B = _boundaries(documents_BT)
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


def convolution(x_BMT, weight_M1W, tail_BMW, silu: bool, documents_BT=None):
    """Runs the causal convolution of each channel by causal-conv1d, or returns None.

    Args:
      x_BMT: zero on padding.
      weight_M1W: of a Conv1d without bias; 2 to 4 taps.
      tail_BMW: the inputs before the first token, one fewer than taps; None for zeros.
      silu: whether SiLU follows.
      documents_BT: a number for each document of a packed row, or None.
    """
    M, _, taps = weight_M1W.shape
    if not _can_run(x_BMT) or M % 8 or not 2 <= taps <= 4:
        return None
    if documents_BT is not None and tail_BMW is not None:
        return None
    if (functions := _functions("causal-conv1d")) is None:
        return None
    whole, update = functions
    options = {"weight": weight_M1W[:, 0].contiguous(), "bias": None}
    options["activation"] = "silu" if silu else None
    if tail_BMW is not None and x_BMT.shape[2] == 1:
        state_BMW = tail_BMW.to(x_BMT.dtype).clone(memory_format=torch.contiguous_format)
        return update(x=x_BMT[:, :, 0].contiguous(), conv_state=state_BMW, **options)[..., None]
    if tail_BMW is not None:
        tail_BMW = _channels_last(tail_BMW.to(x_BMT.dtype))
    seq_idx = None
    if documents_BT is not None:
        seq_idx = documents_BT.to(torch.int32).expand(x_BMT.shape[0], -1).contiguous()
    return whole(x=_channels_last(x_BMT), initial_states=tail_BMW, seq_idx=seq_idx, **options)


def _can_run(*tensors) -> bool:
    """Whether all of them are on a GPU, of one dtype, and no graph is being traced."""
    first = tensors[0]
    return (
        first.device.type == "cuda"
        and not is_tracing(first)
        and all(x.dtype == first.dtype for x in tensors)
    )


def _boundaries(documents_BT):
    """Starts of all documents of all rows in one row and its end; the last document of each row."""
    B, T = documents_BT.shape
    begins_BT = torch.ones_like(documents_BT, dtype=torch.bool)
    begins_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    starts = begins_BT.flatten().nonzero()[:, 0]
    return torch.cat([starts, starts.new_tensor([B * T])]), begins_BT.sum(1).cumsum(0) - 1


def _channels_last(x_BMT):
    """The layout that takes earlier inputs and documents: channels side by side."""
    return x_BMT.transpose(1, 2).contiguous().transpose(1, 2)


@functools.cache
def _functions(package: str):
    """The functions of a package, or None; says once which way was chosen."""
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

    A wrong number is worse than a slow one.
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
