"""Checks the parity check of an export: what passes, what fails, that a failure leaves nothing."""

import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.interop import export_torch, layerwise, parity, torch_export
from hydrahead_jax.interop.layerwise import rounded_logits
from hydrahead_jax.interop.parity import Parity, bound_on_difference, check_parity
from tests.hydrahead_jax.interop import toy


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """Returns a function that exports to `out` with a check that finds what it is told to find."""
    monkeypatch.setattr(torch_export, "torch_is_installed", lambda: True)
    tokenizer = toy.write_tokenizer(tmp_path / "tokenizer")
    params = toy.random_params(toy.MIXED)

    def export(found: Parity | Exception, **options):
        def check(*_, **__):
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(torch_export, "check_parity", check)
        return export_torch(tmp_path / "out", toy.MIXED, params, tokenizer, **options)

    return export


@pytest.mark.parametrize(
    "found",
    [
        Parity(2e-4, True, 64),
        Parity(1e-5, False, 64),
        Parity(float("nan"), True, 64),
        AttributeError("'Cache' object has no attribute 'x'"),
    ],
    ids=["logits", "tokens", "nan", "crash"],
)
def test_a_failed_check_is_one_sentence_and_keeps_the_earlier_export(checked, tmp_path, found):
    with pytest.raises(UserError, match=r"out was not written.*--no-check") as error:
        checked(found)
    assert len(str(error.value).replace(str(tmp_path), "")) < 300
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]
    checked(Parity(1e-5, True, 64))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError):
        checked(found, dtype=jnp.bfloat16)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_no_check_exports_what_would_fail(checked):
    report = checked(Parity(1.0, False, 64), check=False)
    assert report.parity is None and "as asked" in str(report)


def test_a_difference_within_the_bound_of_a_wide_range_passes(checked):
    report = checked(Parity(2e-4, True, 64, bound=3e-4, near_ties=2))
    assert "the same 64 tokens but for 2 that were nearly tied" in str(report)


def test_the_bound_is_a_share_of_the_range_and_never_below_the_absolute_one():
    assert bound_on_difference(np.array([[-1.0, 1.0], [0.0, 5.0]]), 0.0) == pytest.approx(1e-4)
    wide = np.array([[-20.0, 20.0], [100.0, 101.0]])
    assert bound_on_difference(wide, 0.0) == pytest.approx(4e-4)
    assert bound_on_difference(wide, 1e-5) == pytest.approx(4e-4)


def test_the_bound_follows_what_rounding_does_to_the_model_up_to_a_thousandth_of_the_range():
    wide = np.array([[-20.0, 20.0], [100.0, 101.0]])
    assert bound_on_difference(wide, 1e-4) == pytest.approx(8e-4)
    assert bound_on_difference(wide, 1.0) == pytest.approx(4e-2)


def test_nudged_weights_move_the_logits_by_rounding_errors():
    config = toy.HYBRIDS["default"]
    params, tokens_BT = toy.random_params(config), toy.random_tokens(config, 2, 20)
    logits = lambda **how: rounded_logits(
        config, params, jnp.float32, tokens_BT, np.ones_like(tokens_BT), **how
    )
    moved_BTV = np.abs(logits(nudge=np.random.default_rng(0)) - logits())
    assert 0 < moved_BTV.max() < 1e-4


def test_nudging_moves_each_number_by_its_last_digit():
    numbers = np.float32([1.0, -3.0, 2.0**-30, 0.0] * 8)
    nudged = np.asarray(layerwise._nudged(jnp.asarray(numbers), np.random.default_rng(0)))
    ulps = np.abs(nudged.view(np.int32) - numbers.view(np.int32))
    assert set(ulps[numbers != 0]) <= {1, 2} and not nudged[numbers == 0].any()
    assert {-1, 1} == set(np.sign(nudged - numbers)[numbers != 0])


@pytest.mark.parametrize("name", ["default", "silu", "with full attention"])
def test_layer_by_layer_is_the_whole_model(name, monkeypatch):
    monkeypatch.setattr(layerwise, "_WORDS", 40)  # pieces of 40, 40 and 17 words
    config = toy.HYBRIDS[name]
    params = toy.random_params(config)
    tokens_BT = toy.random_tokens(config, 2, 20)
    real_BT = np.ones_like(tokens_BT)
    real_BT[1, :5] = 0
    layered_BTV = rounded_logits(config, params, jnp.float32, tokens_BT, real_BT)
    whole_BTV = toy.logits(config, params, tokens_BT, real_BT)
    np.testing.assert_allclose(layered_BTV[real_BT == 1], whole_BTV[real_BT == 1], atol=2e-5)


def with_torch(our_logits, chosen_BT, monkeypatch, shift=0.0):
    """Returns the verdict as if PyTorch gave our logits, shifted, and chose those tokens."""
    monkeypatch.setattr(parity, "rounded_logits", lambda *_, **__: our_logits)
    monkeypatch.setattr(parity, "_run_torch", lambda *_: (our_logits + shift, chosen_BT))
    monkeypatch.setattr(parity, "_generation_problem", lambda _: "")
    return check_parity("out", toy.MIXED, {}, length=2, new_tokens=2)


def test_a_token_that_is_nearly_tied_is_no_fault_and_another_one_is(monkeypatch):
    logits_BTV = np.zeros((2, 3, 4), np.float32)
    logits_BTV[:, 1:, 2] = 1.0
    logits_BTV[:, 1:, 3] = 1.0 - 1.5e-4
    same = with_torch(logits_BTV, np.full((2, 2), 2), monkeypatch)
    assert same.ok and same.near_ties == 0
    tied = with_torch(logits_BTV, np.array([[2, 3], [2, 2]]), monkeypatch)
    assert tied.ok and tied.near_ties == 1
    other = with_torch(logits_BTV, np.array([[2, 2], [2, 1]]), monkeypatch)
    assert not other.ok and not other.greedy_tokens_equal
    shifted = with_torch(logits_BTV, np.full((2, 2), 2), monkeypatch, shift=2e-4)
    assert shifted.greedy_tokens_equal and not shifted.ok


def test_how_far_rounding_moves_the_logits_is_computed_where_it_may_decide(monkeypatch):
    logits_BTV = np.zeros((2, 3, 4), np.float32)
    passes, moved = [], 2e-5

    def ours(*_, nudge=None):
        passes.append(nudge)
        return logits_BTV if nudge is None else logits_BTV + np.float32(moved)

    monkeypatch.setattr(parity, "_generation_problem", lambda _: "")
    monkeypatch.setattr(parity, "rounded_logits", ours)
    for shift, count, ok in ((9e-5, 1, True), (1.5e-4, 2, True), (1.7e-4, 2, False)):
        passes.clear()
        found = (logits_BTV + np.float32(shift), np.zeros((2, 2), int))
        monkeypatch.setattr(parity, "_run_torch", lambda *_, found=found: found)
        verdict = check_parity("out", toy.MIXED, {}, length=2, new_tokens=2)
        assert verdict.ok == ok and len(passes) == count
        assert verdict.bound == pytest.approx(1e-4 if count == 1 else 8 * moved)


def test_what_transformers_does_not_accept_of_a_generation_config_is_reported(tmp_path):
    pytest.importorskip("transformers", reason="needs transformers: the 3.11 cell")
    path = tmp_path / "generation_config.json"
    path.write_text('{"do_sample": true, "temperature": 0.6, "eos_token_id": [5, 0]}')
    assert parity._generation_problem(tmp_path) == ""
    path.write_text('{"do_sample": false, "temperature": 0.6}')
    assert "temperature" in parity._generation_problem(tmp_path)
