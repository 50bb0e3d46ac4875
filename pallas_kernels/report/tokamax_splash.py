"""Compares with tokamax's splash attention for TPU, where it is installed."""

import importlib
import importlib.util
from collections.abc import Mapping

import jax
import numpy as np

from pallas_kernels.hardware.bundles import Known

_FOLDER = "tokamax._src.ops.experimental.tpu.splash_attention"
_FORWARD, _BACKWARD = 2048, 1024  # blocks with the fewest cycles on v6e (causal, H 128)


def attend(shape, q_BTNH, k_BTKH, v_BTKH):
    """Returns output [B, T, N, H] for `attention.Shape`.

    It gives no log-sum-exp with a gradient.

    Raises:
      NotImplementedError: tokamax is not installed, or the heads are irregular.
    """
    kernel = jax.vmap(_kernel(shape))
    heads_first = (x.swapaxes(1, 2) for x in (q_BTNH * shape.head_size**-0.5, k_BTKH, v_BTKH))
    return kernel(*heads_first).swapaxes(1, 2)


def known(shape, passes: str, chip: str) -> Mapping[str, Known]:
    """Returns what the schedule does not say.

    The forward's grid has a step for each block that is not empty, the backward's for all.
    """
    kernel = _kernel(shape)
    blocks = kernel.fwd_mask_info
    rows = len(set(np.asarray(blocks.active_rows).tolist()))
    kinds = np.asarray(blocks.block_mask)
    ends = {"!= 0": rows / kinds.size}
    found = {"splash_mha_fwd": Known(shares=_kinds(kinds) | ends, trips=shape.heads * kinds.size)}
    if passes != "forward":
        kinds = np.asarray(kernel.dkv_mask_info.block_mask)
        rows = shape.tokens // kernel.kwargs["config"].block_q_dkv
        ends = {"== 0": 1 / rows, f"== {rows - 1}": 1 / rows}
        found["splash_mha_dkv"] = Known(shares=_kinds(kinds) | ends)
    return found


def _kernel(shape):
    if importlib.util.find_spec("tokamax") is None:
        raise NotImplementedError("tokamax is not installed")
    if not shape.problem.is_regular:
        raise NotImplementedError(
            f"kv_head_of_query={shape.kv_head_of_query} is irregular; tokamax takes query head n "
            "with KV head n // (N / K) only"
        )
    splash = importlib.import_module(f"{_FOLDER}.splash_attention_kernel")
    masks = importlib.import_module(f"{_FOLDER}.splash_attention_mask")
    T = shape.tokens
    forward, backward = min(T, _FORWARD), min(T, _BACKWARD)
    config = splash.SplashConfig(
        block_q=forward,
        block_kv=forward,
        block_kv_compute=min(T, 1024),
        block_q_dkv=backward,
        block_kv_dkv=backward,
        block_kv_dkv_compute=backward,
    )
    mask = masks.CausalMask((T, T))
    if shape.window is not None:
        mask = masks.LocalMask((T, T), (shape.window - 1, 0), 0)
    return splash.make_splash_mha(mask, config=config, q_seq_shards=1)


def _kinds(kinds: np.ndarray) -> dict[str, float]:
    """Returns the shares of the bodies for full blocks and for blocks under the mask."""
    share = lambda kind: float(np.mean(kinds == kind))
    return {"!= 0 and != 1": share(2), "!= 0 and == 1": share(1)}
