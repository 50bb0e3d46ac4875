"""Checks what a hybrid takes from its teacher, and where it puts it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.cache.layered import CONV_TAPS
from hydrahead_jax.config import NativeHybrid
from hydrahead_jax.errors import UserError
from hydrahead_jax.interop import head_rms, migrate
from hydrahead_jax.models import abstract_params, merge
from tests.hydrahead_jax.interop import toy
from tests.tolerances import MODULE, assert_close

RMS_LN = jnp.arange(1.0, 9.0).reshape(2, 4)
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def teacher():
    return toy.random_params(toy.TEACHER)


def student_of(teacher, config):
    return migrate(toy.TEACHER, teacher, config, KEY, RMS_LN)


def taps(config, params, tokens_BT, segment_ids_BT=None):
    def forward(params, tokens_BT, segment_ids_BT):
        return merge(config, params)(tokens_BT, segment_ids_BT=segment_ids_BT).taps

    return jax.jit(forward)(params, tokens_BT, segment_ids_BT)


@pytest.mark.parametrize("choices", toy.CHOICES.values(), ids=toy.CHOICES)
def test_shapes_are_the_students_and_all_float32(teacher, choices):
    config = toy.hybrid((1, 2), (), **choices)
    student = student_of(jax.tree.map(lambda x: x.astype(jnp.bfloat16), teacher), config)
    expected = abstract_params(config)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(student) == shapes(expected)


def test_every_head_keeps_its_rows(teacher):
    student = student_of(teacher, toy.hybrid((3,), ()))
    as_numpy = lambda tree: jax.tree.map(np.asarray, tree["layers"][0]["mixer"])
    theirs, mine = as_numpy(teacher), as_numpy(student)
    same = np.testing.assert_array_equal
    same(mine["fa"]["qkv"]["w_q_DNH"], theirs["qkv"]["w_q_DNH"][:, [3]])
    same(mine["gdn"]["qkv"]["w_q_DNH"], theirs["qkv"]["w_q_DNH"][:, [0, 1, 2]])
    for name in ("w_k_DKH", "w_v_DKH"):
        same(mine["fa"]["qkv"][name], theirs["qkv"][name][:, [1]])
        same(mine["gdn"]["qkv"][name], theirs["qkv"][name][:, [0, 0, 1]])
    same(mine["fa"]["w_o_NHD"], theirs["w_o_NHD"][[3]])
    same(mine["gdn"]["w_o_NHD"], theirs["w_o_NHD"][[0, 1, 2]])
    for branch in ("fa", "gdn"):
        for name in ("q_norm_H", "k_norm_H"):
            same(mine[branch]["qkv"][name], theirs["qkv"][name])
        same(mine[branch]["w_gate_DNH"], 0)
        same(mine[branch]["out_norm_H"], 1)
    same(mine["fa"]["gamma_N"], [4.0])
    same(mine["gdn"]["gamma_N"], [1.0, 2.0, 3.0])
    same(student["layers"][1]["mixer"]["gdn"]["gamma_N"], RMS_LN[1])
    assert "fa" not in student["layers"][1]["mixer"]
    for letter in "qkv":
        same(mine["gdn"][f"conv_{letter}_WNH"][:-1], 0)
        same(mine["gdn"][f"conv_{letter}_WNH"][-1], 1)
    assert mine["gdn"]["conv_q_WNH"].shape[0] == CONV_TAPS


def test_decay_is_drawn_from_the_key(teacher):
    config = toy.hybrid((3,), ())
    drawn = lambda key: migrate(toy.TEACHER, teacher, config, key, RMS_LN)["layers"][1]["mixer"]
    first, again, other = (drawn(key)["gdn"] for key in (KEY, KEY, jax.random.key(8)))
    assert (first["a_log_N"] == again["a_log_N"]).all()
    assert (first["a_log_N"] != other["a_log_N"]).all()
    assert ((first["a_log_N"] >= 0) & (first["a_log_N"] <= np.log(16))).all()
    step_N = jax.nn.softplus(first["dt_bias_N"])
    assert ((step_N >= 0.99e-3) & (step_N <= 1.01e-1)).all()


def test_rest_of_the_model_is_the_teachers(teacher):
    student = student_of(teacher, toy.hybrid((3,), ()))
    for tree in (student, teacher := jax.tree.map(lambda x: x, teacher)):
        for layer in tree["layers"].values():
            layer.pop("mixer")
    assert toy.same_tree(student, teacher)


def test_no_buffer_is_shared(teacher):
    for decomposition in (False, True):
        config = toy.hybrid((3,), (), query_decomposition=decomposition)
        leaves = jax.tree.leaves(student_of(teacher, config))
        pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves]
        assert len(set(pointers)) == len(pointers)
        assert not set(pointers) & {x.unsafe_buffer_pointer() for x in jax.tree.leaves(teacher)}


def test_shared_projections_are_the_teachers(teacher):
    student = student_of(teacher, toy.hybrid((3,), (), query_decomposition=False))
    for layer in range(2):
        mine, theirs = (tree["layers"][layer]["mixer"] for tree in (student, teacher))
        assert toy.same_tree(mine["qkv"], theirs["qkv"])
        assert all("qkv" not in mine[branch] for branch in ("fa", "gdn") if branch in mine)


def test_full_attention_layer_stays(teacher):
    config = dataclasses.replace(
        toy.TEACHER, mixers=(toy.TEACHER.mixers[0], toy.hybrid((0,)).mixers[0])
    )
    student = student_of(teacher, config)
    assert toy.same_tree(student["layers"][0], teacher["layers"][0])


def test_native_hybrid_keeps_the_mixer_and_gates_start_as_means_of_key_rows(teacher):
    windows = (NativeHybrid(window=3, slots=4), NativeHybrid(window=None, slots=4))
    config = dataclasses.replace(toy.TEACHER, mixers=windows)
    student = student_of(jax.tree.map(lambda x: x.astype(jnp.bfloat16), teacher), config)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(student) == shapes(abstract_params(config))
    student = student_of(teacher, config)
    gates_DKM = np.asarray(student["layers"][0]["mixer"].pop("w_gate_slots_DKM"))
    assert toy.same_tree(student, teacher)
    w_k_DKH = np.asarray(teacher["layers"][0]["mixer"]["qkv"]["w_k_DKH"])
    assert_close(gates_DKM[:, 1, 2], (w_k_DKH[:, 1, 4] + w_k_DKH[:, 1, 5]) / 2, 1e-6)
    assert_close(gates_DKM[:, 0, 3], (w_k_DKH[:, 0, 6] + w_k_DKH[:, 0, 7]) / 2, 1e-6)


def test_native_hybrid_heads_keep_the_kv_heads_that_they_read(teacher):
    config = toy.hybrid((2, 3), (3,), native_hybrid=NativeHybrid(window=3, slots=4))
    student = student_of(teacher, config)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(student) == shapes(abstract_params(config))
    first, second = (student["layers"][layer]["mixer"]["slots"] for layer in (0, 1))
    of = lambda layer: np.asarray(teacher["layers"][layer]["mixer"]["qkv"]["w_k_DKH"])
    np.testing.assert_array_equal(first["qkv"]["w_k_DKH"], of(0)[:, [0]])
    np.testing.assert_array_equal(second["qkv"]["w_k_DKH"], of(1))
    assert_close(second["w_gate_slots_DKM"][:, 1, 3], of(1)[:, 1, 6:].mean(-1), 1e-6)
    np.testing.assert_array_equal(second["gamma_N"], RMS_LN[1, :3])


def test_head_rms_counts_real_tokens_only(teacher):
    tokens_BT = toy.random_tokens(toy.TEACHER, 2, 9)
    segment_ids_BT = np.array([[1] * 5 + [2] * 4, [1] * 6 + [0] * 3], np.int32)
    real_BT = segment_ids_BT != 0
    expected_LN = [
        np.sqrt(np.mean(np.square(np.asarray(tap.heads_BTNH)[real_BT]), axis=(0, 2)))
        for tap in taps(toy.TEACHER, teacher, tokens_BT, segment_ids_BT)
    ]
    assert_close(head_rms(toy.TEACHER, teacher, tokens_BT, segment_ids_BT), expected_LN, MODULE)


def test_first_token_leaves_a_migrated_model_unchanged(teacher):
    """One token reads only its own value, so the calibrated norm returns the teacher's head."""
    tokens_BT = toy.random_tokens(toy.TEACHER, 1, 1)
    config = toy.hybrid((0, 1, 2, 3), (0, 1, 2, 3))
    rms_LN = head_rms(toy.TEACHER, teacher, tokens_BT)
    student = migrate(toy.TEACHER, teacher, config, KEY, rms_LN)
    actual, expected = (
        toy.logits(c, p, tokens_BT) for c, p in ((config, student), (toy.TEACHER, teacher))
    )
    assert_close(actual, expected, MODULE)


def test_first_token_of_delta_rule_heads_keeps_its_value_up_to_sign(teacher):
    """S = beta k v^T gives o = beta (k . q) v: a multiple of v, which the norm scales back."""
    tokens_BT = toy.random_tokens(toy.TEACHER, 1, 1)
    config = toy.hybrid((), ())
    rms_LN = head_rms(toy.TEACHER, teacher, tokens_BT)
    student = migrate(toy.TEACHER, teacher, config, KEY, rms_LN)
    actual_BTNH = taps(config, student, tokens_BT)[0].heads_BTNH
    expected_BTNH = taps(toy.TEACHER, teacher, tokens_BT)[0].heads_BTNH
    assert_close(np.abs(actual_BTNH), np.abs(expected_BTNH), 1e-2)


def test_models_that_do_not_fit_are_refused(teacher):
    wide = dataclasses.replace(toy.hybrid((0,), ()), mlp=64)
    with pytest.raises(UserError, match="student and teacher differ in mlp: 64 and 48"):
        student_of(teacher, wide)
    with pytest.raises(UserError, match="the student has 1 layers and the teacher 2"):
        student_of(teacher, toy.hybrid((0,)))
    odd = dataclasses.replace(toy.TEACHER, mixers=(NativeHybrid(window=3, slots=3),) * 2)
    with pytest.raises(UserError, match="slots=3 does not divide the teacher's head dim of 8"):
        student_of(teacher, odd)
    normed = NativeHybrid(window=None, output_norm=True)
    odd = dataclasses.replace(toy.TEACHER, mixers=(normed,) * 2)
    with pytest.raises(UserError, match="with output_norm=True cannot be made from a teacher"):
        student_of(teacher, odd)
    with pytest.raises(UserError, match=r"head_rms_LN has shape \(4, 2\)"):
        migrate(toy.TEACHER, teacher, toy.hybrid((0,), ()), KEY, RMS_LN.T)
    with pytest.raises(UserError, match="the teacher must have full attention"):
        migrate(toy.MIXED, teacher, toy.MIXED, KEY, RMS_LN)
