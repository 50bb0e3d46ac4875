"""Makes rows to try context parallelism on; every row of one batch is a case of its own."""

from typing import NamedTuple

import numpy as np

T, TAPS = 96, 4  # 96 tokens divide into the chunks of 2, 3, 4 and 8 ranks in either order
KV_HEAD_OF_QUERY = (2, 0, 2)
KV_HEADS, KEY_HEADS, VALUE_HEADS, HEAD, VALUES, SLOTS, WINDOW = 3, 1, 2, 4, 3, 5, 7


def _segments() -> dict[str, np.ndarray]:
    rows = {
        "one document": [(0, 1)],
        "documents that begin on borders of ranks": [(0, 1), (12, 2), (24, 3), (32, 4), (48, 5)],
        "documents that begin elsewhere": [(0, 1), (7, 2), (31, 3), (33, 4), (65, 5), (90, 6)],
        "a document over several ranks": [(0, 1), (5, 2), (80, 3)],
        "padding on whole ranks": [(0, 1), (24, 0), (64, 1)],
        "padding on whole ranks, a new document after it": [(0, 1), (24, 0), (72, 2)],
        "both chunks of a rank padding": [(0, 1), (24, 0), (36, 1), (60, 0), (72, 2)],
        "padding at both ends": [(0, 0), (13, 1), (40, 2), (84, 0)],
        "padding only": [(0, 0)],
        "identical keys, beta 2": [(0, 1), (50, 2)],
    }
    found = {}
    for name, starts in rows.items():
        ids_T = np.zeros(T, np.int32)
        for first, document in starts:
            ids_T[first:] = document
        found[name] = ids_T
    return found


SEGMENTS = _segments()
ROWS = tuple(SEGMENTS)
IDS_BT = np.stack(list(SEGMENTS.values()))
TAIL_IDS_BW = np.tile(np.array([9, 1, 1], np.int32), (len(ROWS), 1))


class Run(NamedTuple):
    """Describes one op on `data` x `context` devices."""

    op: str
    order: str
    data: int
    context: int
    dtype: str

    def __str__(self):
        return f"{self.op}, {self.order}, {self.data} x {self.context} devices, {self.dtype}"


RUNS = (
    Run("attention", "zigzag", 2, 4, "float64"),
    Run("attention", "contiguous", 1, 3, "float64"),
    Run("delta", "zigzag", 1, 3, "float64"),
    Run("delta", "contiguous", 2, 4, "float64"),
    Run("delta", "zigzag", 1, 8, "float32"),
    Run("null keys", "zigzag", 2, 4, "float64"),
    Run("slots", "zigzag", 2, 4, "float64"),
    Run("slots", "contiguous", 1, 8, "float64"),
    Run("slots without sinks", "zigzag", 1, 3, "float64"),
    Run("slots without window", "contiguous", 2, 4, "float64"),
    Run("conv", "zigzag", 2, 4, "float64"),
    Run("conv", "contiguous", 1, 8, "float64"),
)

HEAVY_RUNS = (
    Run("attention", "zigzag", 1, 8, "float32"),
    Run("attention", "contiguous", 1, 2, "float32"),
    Run("delta", "contiguous", 1, 2, "float32"),
    Run("slots", "zigzag", 1, 3, "float32"),
)


class Slots(NamedTuple):
    q_BTNH: np.ndarray
    k_BTKH: np.ndarray
    v_BTKH: np.ndarray
    log_forget_BTKM: np.ndarray
    q_rotated_BTNH: np.ndarray
    k_rotated_BTKH: np.ndarray


class Attention(NamedTuple):
    q_BTNH: np.ndarray
    k_BTKH: np.ndarray
    v_BTKH: np.ndarray


class Delta(NamedTuple):
    q_BTKH: np.ndarray
    k_BTKH: np.ndarray
    v_BTNP: np.ndarray
    log_decay_BTN: np.ndarray
    beta_BTN: np.ndarray
    state_BNHP: np.ndarray


class Conv(NamedTuple):
    x_BTNH: np.ndarray
    weight_WNH: np.ndarray
    tail_BWNH: np.ndarray


def inputs() -> dict[str, NamedTuple]:
    """Returns the inputs of each op; they are exact in float32."""
    rng = np.random.default_rng(0)
    B, N = len(ROWS), len(KV_HEAD_OF_QUERY)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    keys = normal(B, T, KEY_HEADS, HEAD)
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    log_decay_BTN = -np.exp(2 * normal(B, T, VALUE_HEADS) - 3)
    log_decay_BTN[:, 40:43] = -20.0
    beta_BTN = rng.uniform(0, 2, size=log_decay_BTN.shape).astype(np.float32)
    hostile = ROWS.index("identical keys, beta 2")
    keys[hostile], beta_BTN[hostile], log_decay_BTN[hostile] = 0.5, 2.0, 0.0
    state_BNHP = normal(B, VALUE_HEADS, HEAD, VALUES)
    values_BTNP = normal(B, T, VALUE_HEADS, VALUES)
    queries = normal(B, T, KEY_HEADS, HEAD)
    attention = Attention(*(normal(B, T, n, HEAD) for n in (N, KV_HEADS, KV_HEADS)))
    log_forget_BTKM = -np.exp(2 * normal(B, T, KV_HEADS, SLOTS) - 3)
    log_forget_BTKM[:, 40:43] = -20.0
    log_forget_BTKM[:, 60:, :, 0] = 0.0
    slots = Slots(*attention, log_forget_BTKM, *(normal(B, T, n, HEAD) for n in (N, KV_HEADS)))
    return {
        "attention": attention,
        "null keys": attention,
        "delta": Delta(queries, keys, values_BTNP, log_decay_BTN, beta_BTN, state_BNHP),
        "slots": slots,
        "slots without sinks": slots,
        "slots without window": slots,
        "conv": Conv(normal(B, T, N, HEAD), normal(TAPS, N, HEAD), normal(B, TAPS - 1, N, HEAD)),
    }
