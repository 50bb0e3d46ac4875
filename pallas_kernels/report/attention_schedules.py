"""Counts how often the steps of the attention kernels do what, from the lists that they walk.

Empty blocks, blocks of full work and blocks under a mask have bodies of their own in a kernel. A
step runs at most one of them. The list in scalar memory says which one; the schedule does not.
"""

from collections.abc import Mapping

import numpy as np

from pallas_kernels.attention.chunked import choose_block
from pallas_kernels.attention.chunked_blocks import make_places
from pallas_kernels.attention.splash import kernel_maker
from pallas_kernels.attention.tpu.blocks import choose_blocks
from pallas_kernels.attention.tpu.steps import Do, list_steps, shares
from pallas_kernels.hardware.bundles import Known
from pallas_kernels.hardware.chips import CHIPS
from pallas_kernels.hardware.tpu import LOOPS


def ours(shape, passes: str, chip: str) -> Mapping[str, Known]:
    """Returns the shares of steps of the Pallas kernels."""
    choice = choose_blocks(shape.problem, CHIPS[chip].device_kinds[0])
    steps = _steps(shape, choice, choice.forward, 1)
    found = {"attention_forward": _known(steps, set(Do) - {Do.BEGIN_LIST, Do.END_LIST})}
    if passes != "forward":
        steps = _steps(shape, choice, choice.backward, choice.parts)
        found["attention_backward"] = _known(steps, set(Do))
    return found


def _steps(shape, choice, blocks, parts: int):
    return list_steps(
        T=shape.tokens,
        S=shape.tokens,
        key_blocks=choice.padded_keys(shape.tokens) // blocks.keys,
        blocks=blocks,
        visibility=shape.visibility,
        q_start=0,
        segments=None,
        parts=parts,
        every_query=parts == 1,
    )


def _known(steps, flags: set[Do]) -> Known:
    """Returns the shares of steps with each of the flags that a kernel tests.

    It has no code for a kind of block that does not occur.
    """
    some = {flag: share for flag, share in shares(steps).items() if flag in flags and share}
    return Known(shares={f"& {int(flag)} != 0": share for flag, share in some.items()})


def chunked(shape, passes: str, chip: str) -> Mapping[str, Known]:
    """Returns, for plain JAX, how many key blocks a query block walks on average."""
    T, block = shape.tokens, choose_block(shape.heads)
    places = make_places(shape.visibility, T, T, 0, None, block=block)
    if places.first_Z is None:
        return {}
    return {LOOPS: Known(trips=float(np.mean(places.stop_Z - places.first_Z)))}


def splash(shape, passes: str, chip: str) -> Mapping[str, Known]:
    """Returns the shares of non-empty blocks and of row ends of blocks in JAX's own kernels."""
    make = kernel_maker(shape.problem, CHIPS[chip].device_kinds[0])
    kernel = make(save_residuals=True)
    found = {"splash_mha_fwd": _blocks(np.asarray(kernel.fwd_mask_info.block_mask), -1)}
    if passes != "forward":
        blocks = np.asarray(kernel.dkv_mask_info.block_mask)
        found["splash_mha_dkv"] = _blocks(blocks, -2)
    return found


def _blocks(kinds_HQK: np.ndarray, inner: int) -> Known:
    width = kinds_HQK.shape[inner]
    shares = {"> 0": float(np.mean(kinds_HQK > 0))}
    if width > 1:
        shares |= {"== 0": 1 / width, f"== {width - 1}": 1 / width}
    return Known(shares=shares)
