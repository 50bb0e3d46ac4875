import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.config import FullAttention, Hydra, ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.models import init_params
from hydrahead_jax.selection import definition, receiver
from hydrahead_jax.selection.probes import ProbePairs
from hydrahead_jax.selection.readout import readout, readout_positions

CONFIG = ModelConfig(
    vocab=100,
    embed=32,
    mlp=48,
    query_heads=4,
    kv_heads=2,
    head_dim=16,
    mixers=(FullAttention(),) * 3,
)
SHAPES = {
    "grouped": CONFIG,
    "one layer, one KV head each, own unembedding": dataclasses.replace(
        CONFIG, mixers=(FullAttention(),), query_heads=3, kv_heads=3, tied_embeddings=False
    ),
}
SPAN = 2


def _random_pairs(config: ModelConfig, batch: int = 8, length: int = 24) -> ProbePairs:
    """Pairs that differ in many tokens, so that every head changes; the spans stay the same."""
    rng = np.random.default_rng(0)
    tokens_BT = rng.integers(config.vocab, size=(batch, length))
    corrupt_BT = tokens_BT.copy()
    corrupt_BT[:, 3:12] = rng.integers(config.vocab, size=(batch, 9))
    answer_BJ = tokens_BT[:, -SPAN:]
    return ProbePairs(tokens_BT, corrupt_BT, answer_BJ, (answer_BJ + 7) % config.vocab)


def _random_params(config: ModelConfig, mixer: float, mlp: float, out: float) -> dict:
    params = init_params(config, jax.random.key(3))
    for layer in params["layers"].values():
        layer["mixer"]["w_o_NHD"] *= mixer
        layer["mlp"]["w_down_FD"] *= mlp
    params["final_norm_D"] *= out
    return params


def _raw(readouts: receiver.PatchedReadouts) -> np.ndarray:
    """Effects of the usable pairs, a+ and a- swapped where x' likes the answer better."""
    clean_B, corrupted_B, patched_BLN = (np.asarray(x, np.float64) for x in readouts)
    sign_B = np.sign(clean_B - corrupted_B)
    return receiver.direct_effects(
        sign_B * clean_B, sign_B * corrupted_B, sign_B[:, None, None] * patched_BLN
    ).raw_BLN


def test_readout_by_hand():
    answer_BJ, distractor_BJ = jnp.array([[3.0, 1.0, 0.0]]), jnp.array([[1.0, 2.0, 4.0]])
    expected = (2.0 - 0.9 * 1.0 - 0.81 * 4.0) / (1 + 0.9 + 0.81)
    np.testing.assert_allclose(readout(answer_BJ, distractor_BJ), [expected], rtol=1e-6)
    assert range(10)[readout_positions(10, 2)] == range(7, 9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "scales",
    [(1.0, 1.0, 1.0), (30.0, 1.0, 1.0), (100.0, 100.0, 1.0), (0.1, 1000.0, 4.0)],
    ids=["plain", "loud heads", "loud heads and MLPs", "loud MLPs"],
)
def test_position_local_equals_definition(shape, scales):
    config = SHAPES[shape]
    pairs = _random_pairs(config)
    params = _random_params(config, *scales)
    local = receiver.patched_readouts(config, params, *pairs)
    slow = definition.patched_readouts(config, params, pairs)
    for ours, theirs in zip(local, slow, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    effects = _raw(local)
    assert len(effects) >= 2 and np.abs(effects).max() > 0.05
    np.testing.assert_allclose(effects, _raw(slow), atol=1e-5, rtol=0)


def test_patching_every_head_with_itself_changes_nothing():
    pairs = _random_pairs(CONFIG)
    params = init_params(CONFIG, jax.random.key(0))
    same = pairs._replace(corrupt_BT=pairs.tokens_BT)
    result = receiver.patched_readouts(CONFIG, params, *same)
    np.testing.assert_allclose(result.corrupted_B, result.clean_B, atol=1e-6)
    clean_BLN = np.broadcast_to(result.clean_B[:, None, None], result.patched_BLN.shape)
    np.testing.assert_allclose(result.patched_BLN, clean_BLN, atol=1e-6)


def test_the_one_head_that_is_read_has_effect_one():
    config = SHAPES["one layer, one KV head each, own unembedding"]
    pairs = _random_pairs(config)
    params = _random_params(config, 1.0, 0.0, 4.0)
    mixer = params["layers"][0]["mixer"]
    mixer["w_o_NHD"] = mixer["w_o_NHD"].at[jnp.array([0, 2])].set(0.0)
    effects = _raw(receiver.patched_readouts(config, params, *pairs))
    assert len(effects) >= 2
    np.testing.assert_allclose(effects[:, 0, [0, 2]], 0.0, atol=1e-6)
    np.testing.assert_allclose(effects[:, 0, 1], 1.0, atol=1e-5)


def test_effects_and_skipped_pairs_by_hand():
    patched_BLN = np.array([[[4.0, 2.0]], [[9.0, 9.0]], [[9.0, 9.0]], [[1.5, 1.0]]])
    effects = receiver.direct_effects(
        np.array([4.0, 4.0, 4.0, 1.5]), np.array([-4.0, 3.51, 6.0, 1.0]), patched_BLN
    )
    np.testing.assert_allclose(effects.raw_BLN, [[[0.0, 0.25]], [[0.0, 1.0]]])
    assert (effects.clean, effects.corrupted, effects.skipped) == (2.75, -1.5, 2)


def test_too_few_usable_pairs_is_a_user_error():
    params = _random_params(CONFIG, 1.0, 1.0, 0.01)
    pairs = _random_pairs(CONFIG, batch=7)
    done = []
    with pytest.raises(UserError, match=r"probe p: .* in 0 of 7 pairs, and 6 are needed; use more"):
        receiver.receiver_effects(CONFIG, params, pairs, name="p", batch=3, progress=done.append)
    assert done == [3, 3, 1]


def test_batch_size_changes_nothing(planted_config, planted_params):
    rng = np.random.default_rng(0)
    tokens_BT = rng.integers(16, size=(7, 24))
    tokens_BT[:, 5:8] = tokens_BT[:, -3:] = [20, 30, 40]
    corrupt_BT = tokens_BT.copy()
    corrupt_BT[:, 6:8] = [31, 41]
    pairs = ProbePairs(tokens_BT, corrupt_BT, tokens_BT[:, -2:], corrupt_BT[:, 6:8])
    one, other = (
        receiver.receiver_effects(planted_config, planted_params, pairs, name="p", batch=batch)
        for batch in (7, 3)
    )
    assert one.raw_BLN.shape == (7, 2, 4)
    np.testing.assert_allclose(one.raw_BLN, other.raw_BLN, atol=1e-5)


def test_a_hybrid_is_refused():
    config = dataclasses.replace(CONFIG, mixers=(Hydra(fa_heads=(0,)),) * 3)
    params = init_params(config, jax.random.key(0))
    with pytest.raises(ValueError, match="full attention"):
        receiver.patched_readouts(config, params, *_random_pairs(config))
