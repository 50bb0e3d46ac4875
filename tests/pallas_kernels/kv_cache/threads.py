"""Emulates a warpgroup in numpy, for what `pallas_kernels.kv_cache.gpu.fragments` says of one."""

import ml_dtypes
import numpy as np

THREADS, WARP = 128, 32


class Warpgroup:
    """Runs all threads at once: a word is an array of 128. Checks addresses and memory banks.

    Args:
      memory: bytes of shared memory.
    """

    def __init__(self, memory: np.ndarray):
        self.memory = memory
        self.thread = np.arange(THREADS, dtype=np.uint32)

    def matrices(self, address, *, transposed: bool) -> list:
        words = np.empty((4, THREADS), np.uint32)
        for warp in range(0, THREADS, WARP):
            for k, rows in enumerate(address[warp : warp + WARP].reshape(4, 8)):
                assert np.all(rows % 16 == 0) and len(set(rows // 16 % 8)) == 8, "banks"
                matrix = np.stack([self._bytes(row, 16) for row in rows]).view(np.uint16)
                matrix = np.ascontiguousarray(matrix.T if transposed else matrix)
                words[k, warp : warp + WARP] = matrix.view(np.uint32).reshape(-1)
        return list(words)

    def load(self, address, bits: int):
        assert np.all(address % (bits // 8) == 0)
        form = np.dtype(f"uint{bits}")
        return np.array([self._bytes(x, bits // 8).view(form)[0] for x in address], np.uint32)

    def times(self, x, y):
        factors = (np.broadcast_to(np.uint32(z), x.shape).copy() for z in (x, y))
        x, y = (z.view(ml_dtypes.bfloat16).astype(np.float64) for z in factors)
        return (x * y).astype(ml_dtypes.bfloat16).view(np.uint32)

    def _bytes(self, address, count: int):
        return np.ascontiguousarray(self.memory[int(address) : int(address) + count])


def swizzled(codes_CT: np.ndarray) -> np.ndarray:
    """Returns the bytes of rows of 128 as TMA lays them out: 16 bytes move by the row's number."""
    chunk = np.arange(8)
    rows = [row.reshape(8, 16)[chunk ^ (c % 8)] for c, row in enumerate(codes_CT)]
    return np.concatenate(rows).reshape(-1)


def operand(registers: np.ndarray) -> np.ndarray:
    """Returns the matrix that wgmma takes from registers [tile of 64, 8 columns, half of 16 rows].

    This is the figure of PTX's manual for the left operand of wgmma.m64nNk16.
    """
    tiles, columns, _ = registers.shape
    matrix = np.empty((64 * tiles, 8 * columns), ml_dtypes.bfloat16)
    warp, lane = np.divmod(np.arange(THREADS), WARP)
    for (tile, column, half), pairs in np.ndenumerate(registers):
        row = 64 * tile + 16 * warp + 8 * half + lane // 4
        for x in range(2):
            matrix[row, 8 * column + 2 * (lane % 4) + x] = pairs.view(ml_dtypes.bfloat16)[x::2]
    return matrix
