"""Writes out the rules of the formats in numpy, float64; it uses nothing of the project."""

import math

import numpy as np

E2M1 = (-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_BITS = (15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7)
GAUSSIAN = (0.12839503, 0.3880483, 0.65675912, 0.94234046, 1.2562312, 1.61804639, 2.06901723)
GAUSSIAN += (2.73258957,)


def sylvester(H: int) -> np.ndarray:
    """Returns the Hadamard matrix of ones and minus ones."""
    matrix = np.ones((1, 1))
    while len(matrix) < H:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def nibbles(codes_XH) -> np.ndarray:
    codes_XH = np.asarray(codes_XH, np.uint8)
    return codes_XH[..., ::2] | codes_XH[..., 1::2] << 4


def scale_byte(largest: float, c: float) -> int:
    """The release's rule: Python's round, ties to even; 0 stands for the scale 0."""
    if largest == 0 or not math.isfinite(largest):
        return 0
    exponent = round(math.log2(c * largest))
    return 0 if exponent < -126 else min(exponent, 127) + 127


def ultraquant(x_XH, c: float, rotated: bool):
    """Returns codes, scales, and the vectors in the stored basis."""
    x_XH = np.asarray(x_XH, np.float64)
    if rotated:
        x_XH = x_XH @ sylvester(x_XH.shape[-1]) / np.sqrt(x_XH.shape[-1])
    x_XGC = x_XH.reshape(*x_XH.shape[:-1], -1, 32)
    largest_XG = np.abs(x_XGC).max(-1)
    scales_XG = np.vectorize(lambda a: scale_byte(float(a), c))(largest_XG)
    powers_XG1 = np.where(scales_XG > 0, 2.0 ** (scales_XG - 127.0), 0.0)[..., None]
    relative_XGC = np.where(powers_XG1 > 0, x_XGC, 0.0) / np.where(powers_XG1 > 0, powers_XG1, 1.0)
    middles = (np.array(E2M1)[1:] + np.array(E2M1)[:-1]) / 2
    places_XGC = np.searchsorted(middles, relative_XGC, side="left")  # ties to the lower level
    values_XGC = np.array(E2M1)[places_XGC] * powers_XG1
    codes_XH = np.array(E2M1_BITS)[places_XGC].reshape(x_XH.shape)
    return nibbles(codes_XH), scales_XG, values_XGC.reshape(x_XH.shape)


def turboquant(x_XH, rotated: bool):
    """Returns codes, factors, and the vectors in the stored basis."""
    x_XH = np.asarray(x_XH, np.float64)
    H = x_XH.shape[-1]
    norm_X1 = np.linalg.norm(x_XH, axis=-1, keepdims=True)
    z_XH = x_XH @ sylvester(H) if rotated else np.sqrt(H) * x_XH
    z_XH = z_XH / norm_X1
    middles = (np.array(GAUSSIAN)[1:] + np.array(GAUSSIAN)[:-1]) / 2
    places_XH = np.searchsorted(middles, np.abs(z_XH), side="left")
    levels_XH = np.array(GAUSSIAN)[places_XH] * np.where(z_XH < 0, -1, 1)
    factors_X1 = norm_X1 / np.linalg.norm(levels_XH, axis=-1, keepdims=True)
    factors_X1 = np.minimum(factors_X1, 65504).astype(np.float16)
    return nibbles(places_XH + 8 * (z_XH < 0)), factors_X1, levels_XH * factors_X1


def int4(x_XH, channels: int):
    """Returns codes, steps, zeros, and the vectors; the step is computed in float32."""
    x_XGC = np.asarray(x_XH, np.float32).reshape(*x_XH.shape[:-1], -1, channels)
    low_XG, high_XG = x_XGC.min(-1), x_XGC.max(-1)
    limit = lambda x: np.clip(x, -65504, 65504).astype(np.float16)
    steps_XG, zeros_XG = limit(high_XG / 15 - low_XG / 15), limit(low_XG)
    steps_XG1, zeros_XG1 = (x.astype(np.float64)[..., None] for x in (steps_XG, zeros_XG))
    ratio_XGC = (x_XGC.astype(np.float64) - zeros_XG1) / np.where(steps_XG1 > 0, steps_XG1, 1)
    codes_XGC = np.where(steps_XG1 > 0, np.clip(np.floor(ratio_XGC + 0.5), 0, 15), 0)
    values_XGC = zeros_XG1 + steps_XG1 * codes_XGC
    codes_XH = codes_XGC.reshape(x_XH.shape)
    return nibbles(codes_XH), steps_XG, zeros_XG, values_XGC.reshape(x_XH.shape)


def e4m3(x) -> np.ndarray:
    """Returns the nearest E4M3 numbers, ties to even codes, at most 448."""
    exponents, fractions = np.arange(1, 16)[:, None], np.arange(8)
    positive = np.concatenate(
        (np.arange(8) / 8 * 2.0**-6, (2.0 ** (exponents - 7) * (1 + fractions / 8)).ravel()[:-1])
    )
    size = np.minimum(np.abs(np.asarray(x, np.float64)), 448.0)
    high = np.searchsorted(positive, size)
    low = np.maximum(high - 1, 0)
    below, above = size - positive[low], positive[high] - size
    takes_low = (below < above) | ((below == above) & (low % 2 == 0))
    return np.copysign(positive[np.where(takes_low, low, high)], x)
