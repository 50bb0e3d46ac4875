"""Checks what softmax attention promises beside the common tests of all ops."""

import jax.numpy as jnp
import numpy as np

from tests.pallas_kernels.attention.cases import STARTS, Case, make_inputs
from tests.pallas_kernels.attention.suite import ATTENTION
from tests.tolerances import error_ratio


def chunk_case(name: str, **settings) -> Case:
    """Makes 70 queries at a traced position among 160 keys, as in the cases of `STARTS`."""
    case = Case(name="chunks", traced=True, length=STARTS[0].length, keys=160, **settings)
    return ATTENTION.in_shape_of(name, case)


@ATTENTION.names
def test_chunks_of_the_queries_equal_the_whole(name):
    """The start q_start is traced, and the last chunk goes beyond the end."""
    chunk = chunk_case(name)
    whole = ATTENTION.in_shape_of(name, Case(name="chunks"))
    inputs, wanted = make_inputs(whole), ATTENTION.found(name, whole)
    limits = ATTENTION.bounds(whole.dtype)
    pad = lambda x: jnp.pad(x, ((0, 0), (0, chunk.length), (0, 0), (0, 0)))
    parts = []
    for start in range(0, whole.length, chunk.length):
        q_BTNH = pad(inputs.q_BTNH)[:, start : start + chunk.length]
        of_chunk = inputs._replace(q_BTNH=q_BTNH, q_start=jnp.int32(start))
        parts.append(ATTENTION.run(name, of_chunk, chunk))
    for field in ("out", "lse"):
        joined = np.concatenate([getattr(part, field) for part in parts], axis=1)
        joined = joined[:, : whole.length]
        assert error_ratio(joined, getattr(wanted, field)) < limits[field]


@ATTENTION.names
def test_the_future_gets_no_gradient(name):
    """Keys before a window and behind the last query get gradients of exactly zero."""
    case = chunk_case(name, window=64, q_start=70)
    results = ATTENTION.found(name, case)
    first, stop = case.q_start - case.window + 1, case.q_start + case.length
    for gradient in (results.dk, results.dv):
        assert not np.any(gradient[:, :first]) and not np.any(gradient[:, stop:])
        assert np.all(np.any(gradient[:, first:stop], axis=(0, 2, 3)))
