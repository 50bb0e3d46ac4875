"""Compares the TPU kernels' lists of steps with the full mask."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention.shapes import regular_shape
from pallas_kernels.attention.tpu.blocks import Blocks, choose_blocks
from pallas_kernels.attention.tpu.heads import by_kv_head, in_order
from pallas_kernels.attention.tpu.steps import KINDS, Do, Step, Steps, list_steps
from pallas_kernels.attention.visibility import Segments, Visibility, visible_BTS
from tests.pallas_kernels.kit.cases import segment_ids

SQUARE = Blocks(queries=128, keys=128, chain=128, piece=128, skew=1.0)
WIDE = Blocks(queries=256, keys=128, chain=128, piece=128, skew=1.0)
PROBLEMS = {
    "causal": dict(),
    "odd lengths": dict(T=700, S=700),
    "wide blocks": dict(blocks=WIDE),
    "chunk of a prompt": dict(T=200, S=700, q_start=384),
    "chunk off the blocks": dict(T=200, S=700, q_start=300),
    "before the keys": dict(T=300, q_start=-200),
    "beyond the keys": dict(T=300, q_start=600),
    "sees nothing": dict(T=300, q_start=-1000),
    "not causal": dict(visibility=Visibility(causal=False), T=200, S=700),
    "window 1": dict(visibility=Visibility(causal=True, window=1)),
    "window 200": dict(visibility=Visibility(causal=True, window=200)),
    "packed": dict(segments="packed"),
    "mixed": dict(segments="mixed"),
    "packed, not causal": dict(segments="packed", visibility=Visibility(causal=False)),
    "packed, window 200": dict(segments="packed", visibility=Visibility(causal=True, window=200)),
}


def problem(name: str, *, parts: int, run_time: bool):
    """Returns arguments of `list_steps`, and the mask.

    The mask is [B, query blocks, queries, key blocks, keys].
    """
    known = dict(T=768, S=768, q_start=0, visibility=Visibility(causal=True), blocks=SQUARE)
    known |= PROBLEMS[name]
    T, S, blocks = known["T"], known["S"], known["blocks"]
    unit = blocks.keys * parts
    T_full, S_full = T + -T % blocks.queries, S + -S % unit
    kind = known.pop("segments", None)
    segments = None
    if kind is not None:
        ids_BS = segment_ids(kind, 2, S)
        segments = Segments(
            *(
                jnp.asarray(np.pad(ids_BS[:, :n], ((0, 0), (0, full - n))))
                for n, full in ((T, T_full), (S, S_full))
            )
        )
    mask_BTS = np.asarray(
        visible_BTS(known["visibility"], T_full, S_full, known["q_start"], segments)
    )
    mask_BTS = mask_BTS & (np.arange(T_full) < T)[:, None] & (np.arange(S_full) < S)
    mask = mask_BTS.reshape(
        -1, T_full // blocks.queries, blocks.queries, S_full // blocks.keys, blocks.keys
    )
    if run_time:
        known["q_start"] = jnp.full((len(mask),), known["q_start"])
    arguments = dict(segments=segments, parts=parts, key_blocks=S_full // blocks.keys)
    return known | arguments, mask


def walked(steps: Steps, row: int, part: int) -> Step:
    words = np.asarray(steps.words)
    return Step(words[row if len(words) > 1 else 0, part, : int(steps.lengths[part])])


@pytest.mark.parametrize("run_time", [False, True], ids=["known", "at run time"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_seen_pair_is_in_one_step_of_the_right_kind(name, parts, run_time):
    arguments, mask = problem(name, parts=parts, run_time=run_time)
    steps = list_steps(**arguments, every_query=parts == 1)
    J = arguments["key_blocks"] // parts
    real_queries = (
        np.arange(mask.shape[1] * mask.shape[2]).reshape(mask.shape[1:3]) < arguments["T"]
    )
    for row, mask_ITJS in enumerate(mask):
        visited = []
        for part in range(parts):
            step = walked(steps, row, part)
            for word, i, j in zip(step.word, step.queries, step.keys + part * J, strict=True):
                seen_TS = mask_ITJS[i, :, j][real_queries[i]]
                does = [kind for kind in KINDS if Step(word).does(kind)]
                assert len(does) <= 1
                assert (does == [Do.FULL]) == (bool(does) and np.all(seen_TS))
                if does == [Do.DIAGONAL]:
                    triangle = np.tri(*mask_ITJS[i, :, j].shape, dtype=bool)
                    np.testing.assert_array_equal(seen_TS, triangle[real_queries[i]])
                visited += [(i, j)] * bool(does)
        wanted = np.argwhere(np.any(mask_ITJS, axis=(1, 3)))
        assert len(visited) == len(set(visited))
        assert set(map(tuple, wanted)) <= set(visited)
        if "segments" not in PROBLEMS[name]:
            assert len(visited) == len(wanted)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", PROBLEMS)
def test_each_query_block_begins_and_ends_once(name, parts):
    arguments, mask = problem(name, parts=parts, run_time=True)
    steps = list_steps(**arguments, every_query=parts == 1)
    for row in range(len(mask)):
        for part in range(parts):
            step = walked(steps, row, part)
            begins, ends = (step.does(x) for x in (Do.BEGIN_QUERIES, Do.END_QUERIES))
            blocks = step.queries[begins]
            np.testing.assert_array_equal(blocks, step.queries[ends])
            assert len(set(blocks)) == len(blocks)
            assert parts > 1 or set(blocks) == set(range(mask.shape[1]))
            assert np.all(np.diff(step.queries) >= 0)
            for flag, place in ((Do.BEGIN_LIST, 0), (Do.END_LIST, len(step.word) - 1)):
                np.testing.assert_array_equal(np.flatnonzero(step.does(flag)), [place])


def test_a_packed_row_walks_only_its_documents_blocks():
    """Eight documents of one block each take 8 steps; causality alone would take 36."""
    ids_BT = jnp.repeat(jnp.arange(1, 9), 128)[None]
    steps = list_steps(
        T=1024,
        S=1024,
        key_blocks=8,
        blocks=SQUARE,
        visibility=Visibility(causal=True),
        q_start=0,
        segments=Segments(ids_BT, ids_BT),
    )
    assert steps.lengths.tolist() == [8] and steps.words.shape[2] == 36


def test_lists_can_be_made_while_tracing():
    arguments, _ = problem("mixed", parts=2, run_time=True)
    segments, start = arguments.pop("segments"), arguments.pop("q_start")
    make = lambda segments, start: list_steps(**arguments, segments=segments, q_start=start)
    for found, wanted in zip(jax.jit(make)(segments, start), make(segments, start), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("H", [128, 256])
@pytest.mark.parametrize("window", [None, 1, 700, 5000])
def test_chosen_blocks_cover_any_length_with_little_padding(dtype, H, window):
    for T in (1, 127, 129, 1000, 2049, 8192, 100_000):
        shape = regular_shape(T, 1, 1, head_size=H, window=window)
        problem = dataclasses.replace(shape.problem, dtype=dtype)
        choice = choose_blocks(problem, "TPU v6 lite")
        blocks = choice.forward
        count = -(-T // blocks.queries)
        assert (count * blocks.queries - T) < max(128, 256 * count)
        assert choice.padded_keys(T) % (blocks.keys * choice.parts) == 0
        assert choice.padded_keys(T) >= T


def test_blocks_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="keys=320 must be a multiple of 128"):
        Blocks(queries=128, keys=320, chain=128, piece=128, skew=1.0)


@pytest.mark.parametrize(
    ("kv_head_of_query", "groups"),
    [
        ((0, 0, 1, 1), [[0, 1], [2, 3]]),
        ((0, 1, 2), [[0], [1], [2]]),
        ((5, 2, 2, 0), [[1, 2], [3, 0]]),
        ((0, 0, 0, 1), [[0, 1, 2, 3]]),
        ((1, 1, 1), [[0, 1, 2]]),
    ],
)
def test_query_heads_of_a_kv_head_stay_in_one_group(kv_head_of_query, groups):
    heads = by_kv_head(kv_head_of_query)
    assert heads.groups == len(groups)
    assert heads.query_heads == tuple(n for group in groups for n in group)
    assert heads.kv_heads == tuple(kv_head_of_query[n] for n in heads.query_heads)
    read = sorted(set(kv_head_of_query))
    assert [read[slot] for slot in heads.slots] == list(heads.kv_heads)


def test_heads_in_order_are_groups_of_one():
    heads = in_order((5, 2, 2, 0))
    assert (heads.groups, heads.query_heads, heads.kv_heads) == (4, (0, 1, 2, 3), (5, 2, 2, 0))
