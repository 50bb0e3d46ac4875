import json

import pytest

from hydrahead_jax.config import FullAttention, Hydra, HydraChoices, ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.head_plan import HeadPlan

PLAN = HeadPlan(fa_heads=((0, 1), (3,), ()), query_heads=6, kv_heads=3, strategy="global-interp")


def _teacher(layers=3, query_heads=6, kv_heads=3) -> ModelConfig:
    return ModelConfig(
        vocab=10,
        embed=8,
        mlp=8,
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=4,
        mixers=(FullAttention(),) * layers,
    )


def test_counts():
    assert PLAN.count == 3
    assert PLAN.surviving_kv_heads == 2


def test_student_has_the_plan_in_its_mixers():
    choices = HydraChoices(fusion="none")
    student = PLAN.student(_teacher(), choices)
    assert student.mixers == tuple(Hydra(fa_heads=h, choices=choices) for h in PLAN.fa_heads)
    assert student.embed == 8


@pytest.mark.parametrize("shape", [(2, 6, 3), (3, 12, 3), (3, 6, 2)])
def test_a_model_of_another_shape_is_a_user_error(shape):
    with pytest.raises(UserError, match="the head plan is for"):
        PLAN.student(_teacher(*shape))


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
        ({"fa_heads": [["0"]]}, "'0' is no whole number"),
        ({"fa_heads": [[0.0]]}, "0.0 is no whole number"),
        ({"fa_heads": [3]}, "not iterable"),
        ({"kv_heads": True}, "True is no whole number"),
        ({"query_heads": "6"}, "'6' is no whole number"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_spoiled_file_is_a_user_error_with_its_name(tmp_path, change, message):
    path = tmp_path / "plan.json"
    PLAN.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=rf"plan\.json is not a head plan: .*{message}"):
        HeadPlan.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"query_heads": 6}', "\x00\x01"])
def test_another_file_is_a_user_error_with_its_name(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"plan\.json is not a head plan"):
        HeadPlan.load(path)
    with pytest.raises(UserError, match=r"none\.json is not a head plan"):
        HeadPlan.load(tmp_path / "none.json")
