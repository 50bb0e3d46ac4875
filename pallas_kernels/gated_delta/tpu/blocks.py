"""How much of a problem one program of the TPU kernels takes."""

import dataclasses

import jax.numpy as jnp

CHUNK = 128
LANES = 128
CHAINS = 16
MAX_PIECES = 8
BLOCK_BYTES = 24 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """One program's share.

    Attributes:
      heads: value heads.
      key_heads: key heads that they read.
      group: value heads a key head, in the whole problem.
      pieces: chunks a grid step.
      skew: turns between the starts of two chains, see `schedule.interleave`.
      packed: the matrix units are 256 wide, see `products.Products`.
    """

    heads: int
    key_heads: int
    group: int
    pieces: int
    skew: float
    packed: bool

    @property
    def tokens(self) -> int:
        return self.pieces * CHUNK

    @property
    def programs_a_key_head(self) -> int:
        return max(1, self.group // self.heads)


def choose_blocks(
    *, chunks: int, key_heads: int, value_heads: int, H: int, P: int, dtype, device_kind: str
) -> tuple[Blocks, Blocks]:
    """Blocks of the forward and of the backward kernel.

    A chunk of one head is a chain of small dependent products, so a program needs about `CHAINS`
    of them side by side, heads or pieces. The skews were swept on the compiler's schedules.

    Raises:
      NotImplementedError: no number of heads fits lanes and memory.
    """
    group = value_heads // key_heads
    fitting = [
        heads
        for heads in range(1, min(CHAINS, value_heads) + 1)
        if value_heads % heads == 0
        and (heads % group == 0 or group % heads == 0)
        and _lanes_fit(heads, value_heads, P)
        and _lanes_fit(max(1, heads // group), key_heads, H)
        and _block_bytes(heads, H, P, dtype) <= BLOCK_BYTES
    ]
    if not fitting:
        raise NotImplementedError(
            f"{key_heads} key heads of {H} and {value_heads} value heads of {P} cannot be cut into "
            f"blocks of whole {LANES} lanes; head dimensions of {LANES} always can"
        )
    heads = max(fitting)
    share = dict(
        heads=heads,
        key_heads=max(1, heads // group),
        group=group,
        packed=device_kind not in ("TPU v4", "TPU v5", "TPU v5 lite"),
    )

    def blocks(pieces: int, skew: float) -> Blocks:
        divisors = [n for n in range(1, min(pieces, MAX_PIECES) + 1) if chunks % n == 0]
        return Blocks(**share, pieces=max(divisors), skew=skew)

    return blocks(max(2, CHAINS // heads), 0.3), blocks(max(1, CHAINS // heads), 0.05)


def _lanes_fit(heads: int, all_heads: int, width: int) -> bool:
    return heads == all_heads or heads * width % LANES == 0


def _block_bytes(heads: int, H: int, P: int, dtype) -> int:
    """VMEM of a chunk's arrays in the backward kernel, twice for the pipeline."""
    item = jnp.dtype(dtype).itemsize
    arrays = CHUNK * (4 * H + 3 * P) + H * P
    inverse = CHUNK * CHUNK * 4
    return heads * (2 * (item * arrays + inverse) + 4 * H * P)
