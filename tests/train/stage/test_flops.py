"""Compares the FLOP of a step with the matrix products of the real step, traced."""

import dataclasses

import pytest

from hydrahead_jax.config import Hydra, HydraChoices, NativeHybrid
from hydrahead_jax.models import layer_config
from hydrahead_jax.precision import training_policy
from pallas_kernels.attention.api import _attention
from pallas_kernels.gated_delta.api import _gated_delta
from pallas_kernels.slot_attention.api import _slot_attention
from tests.train import small
from tests.train.dots import dot_flops
from train.data.batches import DataConfig
from train.run.train_step import abstract_arguments, make_train_step
from train.stage.flops import step_flops, train_flops
from train.stage.optimizer import AdamW
from train.stage.stage import EVERYTHING, MIXERS, Stage

B, T = 2, 24
LATE = r"layers/1/mixer/.*|final_norm_D"


def stage(loss, trainable=EVERYTHING, **more) -> Stage:
    return Stage(
        name=f"{loss} {trainable}",
        loss=loss,
        steps=1,
        data=DataConfig(length=T, batch=B),
        optim=AdamW(learning_rate=1.0),
        trainable=trainable,
        **more,
    )


@pytest.fixture
def references(monkeypatch):
    """Chooses the definitions of all ops: there the delta rule is its recurrence."""
    for op in (_attention, _gated_delta, _slot_attention):
        monkeypatch.setattr(op, "_chosen", ["reference"])


def traced(stage: Stage, config, teacher) -> int:
    what = (stage, config, teacher, training_policy("float32"))
    return dot_flops(make_train_step(*what), *abstract_arguments(*what))


def tokens_times(config, flops_a_head_and_key: float) -> float:
    """Returns the FLOP that the definition of attention spends on keys that no query sees."""
    heads = sum(len(config.softmax_heads(layer)) for layer in range(config.layers))
    return B * T * heads * config.head_dim * flops_a_head_and_key * (T - (T + 1) / 2)


LOGITS = B * T * 2 * small.TEACHER.embed * small.TEACHER.vocab


@pytest.mark.usefixtures("references")
@pytest.mark.parametrize(
    ("stage", "logits_again"),
    [
        (stage("align", MIXERS), 0),
        (stage("distill"), 2),  # the losses make logits again in their backward pass
        (stage("next_token"), 1),
        (stage("next_token", MIXERS), 2),  # and the gradient of the embedding, also if frozen
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_count_is_that_of_the_real_step(stage, logits_again):
    """The count is exact: every product of the traced step; convolutions are no products."""
    teacher = None if stage.loss == "next_token" else small.TEACHER
    count = step_flops(stage, small.STUDENT, teacher)
    assert count.model == train_flops(stage, small.STUDENT, teacher) == sum(count.parts.values())
    expected = count.model - count.parts["convolution"] + logits_again * LOGITS
    expected += tokens_times(small.STUDENT, 12)
    expected += tokens_times(teacher, 4) if teacher else 0
    assert traced(stage, small.STUDENT, teacher) == expected


@pytest.mark.usefixtures("references")
def test_count_of_windows_and_slots_is_that_of_the_real_step():
    """The definition also computes scores of keys that no query sees, and writes by no product."""
    windows, slots, H = (5, 0, None), 3, small.TEACHER.head_dim
    form = {"value_silu": True, "output_norm": True, "qk_norm": False}  # no product more or less
    mixers = (
        NativeHybrid(window=windows[0], slots=slots),
        *(NativeHybrid(window=window, slots=slots, **form) for window in windows[1:]),
    )
    # A HydraHead layer of slots alone is, but for its output gates, the same work.
    choices = HydraChoices(native_hybrid=mixers[0], fusion="none", query_decomposition=False)
    hydra = dataclasses.replace(small.TEACHER, mixers=(Hydra(fa_heads=(), choices=choices),))
    same = dataclasses.replace(small.TEACHER, mixers=mixers[:1])
    more, less = (step_flops(stage("next_token"), c, None).parts for c in (hydra, same))
    more["projections"] -= 6 * B * T * 4 * H * small.TEACHER.embed
    assert more == less
    config = dataclasses.replace(small.TEACHER, mixers=mixers)
    count = step_flops(stage("next_token"), config, None)
    seen = {5: (5 * T - 10) / T, None: (T + 1) / 2}
    assert count.parts["softmax attention"] == B * T * 4 * 12 * H * sum(seen.values())
    assert count.parts["slots"] == B * T * 2 * 12 * slots * H * (4 + 2)
    expected = count.model + LOGITS - B * T * 2 * 12 * slots * H * 2
    expected += B * T * 4 * 12 * H * sum(T - keys for keys in seen.values())
    assert traced(stage("next_token"), config, None) == expected
    least = step_flops(stage("next_token"), config, None).at_least - count.model
    least -= B * T * 2 * H * (4 * sum(seen.values()) + 2 * 4 * slots)  # logits made again
    in_chunks = 2 * 4 * 64 * ((4 + 10) * H + (4 + 12) * slots)
    assert least == pytest.approx(B * T * in_chunks, rel=1e-12)


def test_gradients_start_at_the_first_trained_parameter():
    first, second = (
        step_flops(stage("next_token", rf"layers/{i}/mlp/w_down_FD"), small.STUDENT, None).parts
        for i in (0, 1)
    )
    once = step_flops(stage("next_token", "final_norm_D"), small.STUDENT, None).parts
    assert second["delta rule"] == once["delta rule"]
    second_layer = len(small.STUDENT.mixers[1].fa_heads) / 3
    grown = once["softmax attention"] * (1 + 2 * second_layer)
    assert first["softmax attention"] == pytest.approx(grown, rel=1e-12)


def test_work_beyond_the_model_grows_with_rematerialisation():
    counts = [
        step_flops(stage("next_token", remat=remat), small.STUDENT, None)
        for remat in ("none", "kernels", "full")
    ]
    assert len({count.model for count in counts}) == 1
    least = [count.at_least for count in counts]
    assert counts[0].model < least[0] < least[1] < least[2]
    forward = counts[0].parts["mlp"] / 3 * 2 / 3 + counts[0].parts["projections"] / 3
    forward += counts[0].parts["convolution"] / 3
    assert least[1] - least[0] == pytest.approx(forward, rel=1e-12)


def test_delta_rule_is_counted_by_its_recurrence():
    config = layer_config(small.STUDENT, 0)
    heads, size = 3, config.head_dim
    parts = step_flops(stage("next_token"), config, None).parts
    assert parts["delta rule"] == B * T * heads * 3 * 6 * size**2
    choices = HydraChoices(query_decomposition=False)
    shared = dataclasses.replace(config, mixers=(Hydra(fa_heads=(1,), choices=choices),))
    assert (
        step_flops(stage("next_token"), shared, None).model
        < step_flops(stage("next_token"), config, None).model
    )
