"""Checks the errors of KV-cache formats against numpy, on a model with null keys."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from hydrahead_jax.cache import check_names, init_cache, layer_formats
from hydrahead_jax.cache.by_layer import read_formats, ultraquant, write_formats
from hydrahead_jax.config import Hydra, NativeHybrid
from hydrahead_jax.errors import UserError
from hydrahead_jax.kv_quality import KVReportSettings
from hydrahead_jax.kv_quality.errors import layer_errors, outlier
from hydrahead_jax.kv_quality.inputs import attention_inputs, kv_heads
from hydrahead_jax.kv_quality.next_token import next_token
from hydrahead_jax.kv_quality.tuned import best_c, gain, tune
from hydrahead_jax.kv_quality.vectors import measure_vectors
from hydrahead_jax.models import merge
from pallas_kernels import KV_FORMATS
from pallas_kernels.kv_cache.ultraquant import UltraQuant
from tests.hydrahead_jax.kv_quality import by_definition
from tests.hydrahead_jax.models.toy import WIDE_HEADS, random_params
from tests.tolerances import MODULE, OP

CONFIG = dataclasses.replace(
    WIDE_HEADS, mixers=(NativeHybrid(window=None, slots=4), Hydra(fa_heads=(2, 3)))
)
TOKENS = np.random.default_rng(0).integers(CONFIG.vocab, size=(4, 10)).astype(np.int32)
C_GRID = (0.156, 0.2, 0.25)
NAMES = ("bf16", "ultraquant")


@functools.cache
def inputs() -> dict:
    return attention_inputs(CONFIG, random_params(CONFIG), TOKENS)


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    """Returns the sums of two batches, of 2 stretches each."""
    folder = tmp_path_factory.mktemp("batches")
    return sums(folder, lambda done, total: None)


def sums(folder, progress) -> list[dict]:
    formats = {name: layer_formats(CONFIG, name) for name in NAMES}
    params = random_params(CONFIG)
    settings = {"batch": 2, "folder": folder, "progress": progress}
    return measure_vectors(CONFIG, params, TOKENS, formats, C_GRID, **settings)


def test_the_inputs_are_what_the_cache_gets_and_attention_reads():
    model = jax.jit(lambda params, cache: merge(CONFIG, params)(TOKENS, cache=cache).cache.layers)
    layers = model(random_params(CONFIG), init_cache(CONFIG, *TOKENS.shape))
    for layer, read in inputs().items():
        kv = layers[layer].kv
        for actual, expected in ((read.k_BTKH, kv.k_BSKH), (read.v_BTKH, kv.v_BSKH)):
            np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert inputs()[1].kv_head_of_query == (0, 0) and kv_heads(CONFIG, 1) == (1,)
    assert inputs()[0].null_keys == 4


def test_errors_of_each_head_are_those_of_numpy(layers):
    kv_format = KV_FORMATS["ultraquant"]
    for layer in layers:
        read = inputs()[layer["layer"]]
        found = layer_errors(layer, NAMES)
        for place in range(len(layer["heads"])):
            queries = [n for n, head in enumerate(read.kv_head_of_query) if head == place]
            k_BTH, v_BTH = read.k_BTKH[:, :, place], read.v_BTKH[:, :, place]
            others = [
                by_definition.restored(side, x_BTH)
                for side, x_BTH in ((kv_format.keys, k_BTH), (kv_format.values, v_BTH))
            ]
            expected = by_definition.errors(
                read.q_BTNH[:, :, np.array(queries)], k_BTH, v_BTH, others, read.null_keys
            )
            assert 0.001 < expected["output_error"] < 0.1
            for measure, value in expected.items():
                assert found["ultraquant"][measure][place] == pytest.approx(value, rel=MODULE)
                raw = found["bf16"][measure][place]
                assert raw == pytest.approx(float(measure.endswith("cosine")), abs=OP)


def test_the_tuned_c_is_the_best_of_its_grid(layers, tmp_path):
    tuned = tune(layers, C_GRID)
    for layer in tuned:
        read = inputs()[layer["layer"]]
        for side, x_BTKH in (("keys", read.k_BTKH), ("values", read.v_BTKH)):
            heads = [x_BTKH[:, :, place] for place in range(x_BTKH.shape[2])]
            error_X = [
                sum(squared_error(UltraQuant(c, side == "keys"), x_BTH) for x_BTH in heads)
                / np.sum(np.square(x_BTKH, dtype=float))
                for c in C_GRID
            ]
            np.testing.assert_allclose(list(layer[side]["by_c"].values()), error_X, rtol=MODULE)
            assert layer[side]["c"] == C_GRID[np.argmin(error_X)]
    released = gain(tuned, 0.156)
    assert 0 < released["keys"] < 0.5 and gain(tuned, 0.3) is None
    path = tmp_path / "kv_formats.json"
    write_formats(path, best_c(tuned))
    formats = layer_formats(CONFIG, str(path))
    assert formats == layer_formats(CONFIG, read_formats(path))
    assert formats[1] == ultraquant(best_c(tuned)[1])


def squared_error(side: UltraQuant, x_BTH) -> float:
    return np.sum((by_definition.restored(side, x_BTH) - np.asarray(x_BTH, np.float64)) ** 2)


def test_a_file_of_formats_that_cannot_be_is_refused(tmp_path):
    path = tmp_path / "formats.json"
    with pytest.raises(UserError, match=r"formats\.json cannot be read"):
        check_names(str(path))
    path.write_text('{"c": {"0": {"keys": 0.2}}}')
    with pytest.raises(UserError, match="does not hold the c of each layer's keys and values"):
        check_names(str(path))


def test_sums_resume_batch_by_batch(layers, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sums(tmp_path, stop)
    (first,) = tmp_path.iterdir()
    written = first.stat().st_mtime_ns
    assert sums(tmp_path, lambda done, total: None) == layers
    assert first.stat().st_mtime_ns == written and len(list(tmp_path.iterdir())) == 2


def test_outlier_channels_are_named():
    squares = [1.0] * 31 + [900.0]
    found = outlier({"vectors": 1, "channels": {"keys": squares}}, "keys")
    assert found == {"channel": 31, "times_median": 30.0}


def test_every_scored_token_reads_the_cache():
    """The first token, which sees itself alone, has another distribution too."""
    params, kv_formats = random_params(WIDE_HEADS), layer_formats(WIDE_HEADS, "ultraquant")
    found = next_token(WIDE_HEADS, params, TOKENS, kv_formats, batch=4)
    log_p, log_q = (log_probabilities(params, kv_format) for kv_format in (None, kv_formats))
    target_BT1 = TOKENS[:, 1:, None]
    loss = lambda log_p: -np.take_along_axis(log_p[:, :-1], target_BT1, axis=-1).mean()
    kl_BT = np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)[:, :-1]
    assert (kl_BT[:, 0] > 0).all()
    assert found["kl"] == pytest.approx(kl_BT.mean(), rel=MODULE)
    assert found["text_loss"] == pytest.approx(loss(log_q), rel=MODULE)
    assert found["raw_text_loss"] == pytest.approx(loss(log_p), rel=MODULE)
    same_BT = (log_p.argmax(axis=-1) == log_q.argmax(axis=-1))[:, :-1]
    assert found["same_token"] == pytest.approx(same_BT.mean())


def log_probabilities(params: dict, kv_format) -> np.ndarray:
    """Returns float64 log probabilities [B, T, V], token by token."""
    cache, found = init_cache(WIDE_HEADS, *TOKENS.shape, kv_format=kv_format), []

    @jax.jit
    def step(params, token_B, cache):
        model = merge(WIDE_HEADS, params)
        output = model(token_B[:, None], cache=cache)
        return model.logits(output.hidden_BTD[:, 0]), output.cache

    for token_B in TOKENS.T:
        logits_BV, cache = step(params, token_B, cache)
        found.append(np.asarray(logits_BV, np.float64))
    logits_BTV = np.stack(found, axis=1)
    return logits_BTV - np.logaddexp.reduce(logits_BTV, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"formats": ("int3",)}, "there is no format 'int3'; use one of bf16"),
        ({"formats": ()}, r"formats=\[\] must name at least one"),
        ({"formats": ("fp8", "fp8")}, "each only once"),
        ({"windows": 0}, "windows=0 must be 1 or more"),
        ({"length": 1}, "length=1 must be 2 or more"),
        ({"c_grid": (0.6,)}, r"c_grid=\[0\.6\] must hold numbers above 0 and at most 0\.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        KVReportSettings(**changes)
