"""Checks which layers a plan of native hybrid attention makes global, and what it refuses."""

import pytest

from hydrahead_jax.config import NativeHybrid
from hydrahead_jax.errors import UserError
from hydrahead_jax.layer_plan import NativeHybridPlan
from tests.toy_config import toy_config


def global_layers(layers: int, **plan) -> list[int]:
    mixers = NativeHybridPlan(**plan).mixers(layers)
    return [index for index, mixer in enumerate(mixers) if mixer.window is None]


def test_the_last_of_each_eight_layers_sees_all_tokens_unless_layers_are_named():
    assert global_layers(28) == [7, 15, 23]
    assert global_layers(7) == []
    assert global_layers(6, global_every=2) == [1, 3, 5]
    assert global_layers(28, global_layers=(11,)) == [11]
    assert global_layers(28, global_layers=()) == []


def test_student_is_the_teacher_but_for_its_mixers():
    teacher = toy_config(layers=2, head_dim=8)
    plan = NativeHybridPlan(window=5, slots=4, sinks=False, gate_normaliser=2.0, global_every=2)
    of_window = lambda window: NativeHybrid(
        window=window, slots=4, sinks=False, gate_normaliser=2.0
    )
    mixers = (of_window(5), of_window(None))
    assert plan.student(teacher) == toy_config(head_dim=8, mixers=mixers)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"slots": 3}, "slots=3 does not divide the teacher's head dim of 8.* use slots=2"),
        ({"slots": 64}, "slots=64 does not divide the teacher's head dim of 8.* use slots=8"),
        (
            {"slots": 4, "value_silu": True, "qk_norm": False},
            "with value_silu=True, qk_norm=False cannot be made from a teacher, .* from scratch",
        ),
        (
            {"slots": 4, "global_layers": (2,)},
            "there is no layer 2 in a model of 2 layers; use layers from 0 to 1",
        ),
    ],
)
def test_plans_that_do_not_suit_the_teacher_are_refused(plan, message):
    with pytest.raises(UserError, match=message):
        NativeHybridPlan(**plan).student(toy_config(head_dim=8))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"window": -1}, "window=-1 must be 0 or more"),
        ({"global_every": 0}, "global_every=0 must be 1 or more"),
        ({"global_layers": (3, 1)}, r"global_layers=\(3, 1\) must be ascending, unique"),
    ],
)
def test_impossible_plans_are_refused(plan, message):
    with pytest.raises(ValueError, match=message):
        NativeHybridPlan(**plan)
