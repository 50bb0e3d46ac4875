import dataclasses
import json

import pytest

from hydrahead_jax.cache import cache_bytes
from hydrahead_jax.config import FullAttention, Hydra, HydraChoices
from hydrahead_jax.errors import UserError
from hydrahead_jax.head_plan import HeadPlan
from tests.toy_config import toy_config

TEACHER = toy_config(3, 6, 3)
PLAN = HeadPlan(fa_heads=((0, 1), (3,), ()), query_heads=6, kv_heads=3, strategy="global-interp")


def test_counts():
    assert PLAN.count == 3
    assert PLAN.surviving_kv_heads == 2


def test_student_has_the_plan_in_its_mixers():
    choices = HydraChoices(fusion="none")
    student = PLAN.student(TEACHER, choices)
    assert student.mixers == tuple(Hydra(fa_heads=h, choices=choices) for h in PLAN.fa_heads)
    assert student.embed == 8


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 6, 3), "3 layers, the model has 2; use a plan"),
        ((3, 12, 3), "6 query heads in a layer, the model has 12; use a plan"),
        ((3, 6, 2), "3 KV heads in a layer, the model has 2; use a plan"),
        (
            (4, 6, 6),
            "3 layers, the model has 4; 3 KV heads in a layer, the model has 6; use a plan",
        ),
    ],
)
def test_a_model_of_another_shape_is_a_user_error(shape, message):
    with pytest.raises(UserError, match=f"the head plan is for another model: {message}"):
        PLAN.student(toy_config(*shape))


def test_a_head_that_is_no_softmax_in_the_model_is_a_user_error():
    hybrid = dataclasses.replace(
        TEACHER, mixers=(Hydra(fa_heads=(0, 1, 2)), Hydra(fa_heads=(2, 4)), FullAttention())
    )
    with pytest.raises(UserError, match=r"layer 1: heads \[3\] are delta-rule heads in the model"):
        PLAN.check(hybrid)
    dataclasses.replace(PLAN, fa_heads=((0, 1), (4,), (5,))).check(hybrid)


def test_a_mesh_needs_multiples_in_every_layer():
    PLAN.check(TEACHER, tensor_multiple=1)
    even = dataclasses.replace(PLAN, fa_heads=((0, 1), (), (2, 3, 4, 5)))
    even.check(TEACHER, tensor_multiple=2)
    with pytest.raises(UserError, match=r"layer 1: 1 softmax and 5 .* with tensor_multiple=2"):
        PLAN.check(TEACHER, tensor_multiple=2)
    with pytest.raises(UserError, match="tensor_multiple=0 must be at least 1"):
        PLAN.check(TEACHER, tensor_multiple=0)
    with pytest.raises(UserError, match="layer 0: 2 softmax and 4 delta-rule heads"):
        even.check(TEACHER, tensor_multiple=4)


def test_kv_bytes_per_token_are_those_of_the_cache():
    assert PLAN.kv_bytes_per_token(TEACHER) == 2 * 2 * 4 * 2
    assert PLAN.kv_bytes_per_token(TEACHER, "float32") == 2 * 2 * 4 * 4
    student = PLAN.student(TEACHER)
    more = cache_bytes(student, 512) - cache_bytes(student, 256)
    assert more == 256 * PLAN.kv_bytes_per_token(TEACHER)
    with pytest.raises(UserError, match="'int3' is not a dtype of a cache"):
        PLAN.kv_bytes_per_token(TEACHER, "int3")


def test_json_round_trip(tmp_path):
    path = tmp_path / "plan.json"
    PLAN.save(path)
    assert HeadPlan.load(path) == PLAN
    assert json.loads(path.read_text())["fa_heads"] == [[0, 1], [3], []]


@pytest.mark.parametrize("heads", [(1, 0), (2, 2), (6,), (-1,)])
def test_impossible_heads_are_a_user_error(heads):
    with pytest.raises(UserError, match=r"layer 1: heads .* between 0 and 5"):
        HeadPlan(fa_heads=((0,), heads), query_heads=6, kv_heads=3, strategy="fixed")


@pytest.mark.parametrize("kv_heads", [0, 4, 12])
def test_impossible_kv_groups_are_a_user_error(kv_heads):
    with pytest.raises(UserError, match=f"multiple of {kv_heads} KV heads"):
        HeadPlan(fa_heads=((0,),), query_heads=6, kv_heads=kv_heads, strategy="fixed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fa_heads": [[7]]}, "between 0 and 5"),
        ({"fa_heads": [["0"]]}, "fa_heads.0.0: '0' must be an integer"),
        ({"fa_heads": [[0.0]]}, "fa_heads.0.0: 0.0 must be an integer"),
        ({"fa_heads": [3]}, "fa_heads.0: 3 must be a list, each element an integer"),
        ({"fa_heads": {"0": [1]}}, "must be a list, each element a list"),
        ({"fa_heads": ["01"]}, "fa_heads.0: '01' must be a list"),
        ({"kv_heads": True}, "kv_heads: True must be an integer"),
        ({"query_heads": "6"}, "query_heads: '6' must be an integer"),
        ({"strategy": 3}, "strategy: 3 must be a string"),
        ({"colour": "red", "size": 1}, "there is no field 'colour'; use one of fa_heads, "),
    ],
)
def test_a_spoiled_file_is_a_user_error_with_its_name(tmp_path, change, message):
    path = tmp_path / "plan.json"
    PLAN.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=rf"plan\.json is not a head plan: .*{message}"):
        HeadPlan.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "must be an object with fa_heads, query_heads, "),
        ('{"query_heads": 6}', "it needs fa_heads, kv_heads, strategy"),
        ("\x00\x01", "Expecting value"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_another_file_is_a_user_error_with_its_name(tmp_path, text, message):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"plan\.json is not a head plan: .*{message}"):
        HeadPlan.load(path)
    none = tmp_path / "none.json"
    with pytest.raises(UserError) as caught:
        HeadPlan.load(none)
    assert str(caught.value) == (
        f"{none} is not a head plan: No such file or directory; make one by "
        "`python -m train select`"
    )


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = tmp_path / "plan.json"
    PLAN.save(path)
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert HeadPlan.load(path) == PLAN
