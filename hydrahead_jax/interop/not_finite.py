"""Counts NaN and infinity in the weights of a file, without a copy of them."""

import numpy as np

_AT_ONCE = 2**22
# The bits of exponent and mantissa: NaN and infinity are the numbers with all of the exponent set,
# and infinity has none of the mantissa.
_BITS = {
    "bfloat16": (np.uint16(0x7F80), np.uint16(0x007F)),
    "float16": (np.uint16(0x7C00), np.uint16(0x03FF)),
    "float32": (np.uint32(0x7F80_0000), np.uint32(0x007F_FFFF)),
}


def not_finite(array: np.ndarray) -> str:
    """Returns text such as "3 NaN and 1 infinite of 64 numbers"; "" where all are finite.

    Args:
      array: bfloat16, float16 or float32.
    """
    exponent, mantissa = _BITS[array.dtype.name]
    bits = np.ascontiguousarray(array).reshape(-1).view(exponent.dtype)
    found = infinite = 0
    for start in range(0, bits.size, _AT_ONCE):
        part = bits[start : start + _AT_ONCE]
        special = part[(part & exponent) == exponent]
        found += special.size
        infinite += int(np.count_nonzero((special & mantissa) == 0))
    if not found:
        return ""
    return f"{found - infinite} NaN and {infinite} infinite of {bits.size} numbers"
