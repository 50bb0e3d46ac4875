"""Checks an exported model whose cache stores keys and values in a format of few bits."""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.cache import cache_bytes
from hydrahead_jax.config import Hydra, NativeHybrid
from hydrahead_jax.errors import UserError
from hydrahead_jax.generate import generate
from hydrahead_jax.interop import export_torch, load_hf, torch_export
from hydrahead_jax.interop.hf_config import to_hf_config
from pallas_kernels import KV_FORMATS
from tests.hydrahead_jax.interop import toy
from tests.hydrahead_jax.interop.with_torch import load, torch, transformers

# isort: split
from hydrahead_jax.interop.torch_model.configuration_hydrahead import HydraHeadConfig
from hydrahead_jax.interop.torch_model.kv_formats_hydrahead import FORMATS
from hydrahead_jax.interop.torch_model.modeling_hydrahead import HydraHeadModel

MIXERS = (Hydra(fa_heads=(0, 1, 2, 3)), NativeHybrid(window=None, slots=4))
CONFIG = dataclasses.replace(toy.TEACHER, head_dim=32, mixers=MIXERS)
PADDING, LENGTH = 13, 40
SAME = 1e-4


def vectors() -> np.ndarray:
    """Returns vectors of all sizes but denormals, which our compiler takes for 0.

    Some are bfloat16 numbers, and in some a channel stands out.
    """
    rng = np.random.default_rng(0)
    x_XH = rng.normal(size=(400, 64)) * np.exp2(rng.integers(-100, 120, size=(400, 1)))
    x_XH = x_XH.astype(np.float32)
    x_XH[100:200, 5] *= 30
    x_XH[200:300] = x_XH[200:300].astype(jnp.bfloat16)
    x_XH[300:303] = 0.0
    x_XH[303, :2] = np.nan, np.inf
    x_XH[304:306, 7] = 1e-45, -np.inf
    return x_XH


@pytest.mark.parametrize("name", [name for name in KV_FORMATS if name != "bf16"])
def test_codes_and_decoded_numbers_are_ours_bit_by_bit(name):
    ours, x_XH = KV_FORMATS[name], vectors()
    for our, their in zip((ours.keys, ours.values), FORMATS[name], strict=True):
        codes, numbers = jax.jit(lambda x, our=our: (c := our.encode(x), our.decode(c)))(x_XH)
        parts = their.encode(torch.tensor(x_XH))
        for code, part in zip(codes, parts, strict=True):
            same = np.asarray(code).view(np.uint8) == part.view(torch.uint8).numpy()
            # A compiler may round the squares of TurboQuant's norm once less.
            assert same.all() or (name == "turboquant4" and same.mean() > 0.999)
        bytes_first = [np.asarray(codes[0]).view(np.uint8), *map(np.asarray, codes[1:])]
        decoded = their.decode([torch.tensor(part) for part in bytes_first])
        np.testing.assert_array_equal(decoded.numpy(), np.asarray(numbers))


def test_formats_have_the_same_names():
    assert list(FORMATS) == list(KV_FORMATS)


@pytest.fixture(scope="module")
def params():
    return toy.random_params(CONFIG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, params):
    root = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_export, "torch_is_installed", lambda: False)
        export_torch(root / "out", CONFIG, params, toy.write_tokenizer(root / "tokenizer"))
    return root / "out"


@pytest.fixture(scope="module")
def model(folder):
    return without_stops(load(folder, kv_cache="ultraquant"))


def without_stops(model):
    model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=0)
    return model


def batch() -> dict:
    """Returns two rows, the second of which begins with padding."""
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, :PADDING] = 0
    ids = torch.tensor(toy.random_tokens(CONFIG, 2, LENGTH), dtype=torch.long)
    return {"input_ids": ids, "attention_mask": mask}


def new_tokens(model, count: int = 12, **options) -> list:
    return model.generate(**batch(), max_new_tokens=count, **options)[:, LENGTH:].tolist()


def test_greedy_tokens_are_ours(folder, params):
    names = ["ultraquant", "turboquant4"]
    ids = batch()["input_ids"].tolist()
    prompts = [ids[0], ids[1][PADDING:]]
    ours = generate(CONFIG, params, prompts, max_new_tokens=64, kv_cache=names)
    assert new_tokens(without_stops(load(folder, kv_cache=names)), 64) == ours


def test_the_keyword_and_the_config_say_the_same(folder, model):
    plain, packed = without_stops(load(folder)), new_tokens(model)
    assert new_tokens(plain, kv_cache="ultraquant") == packed
    assert new_tokens(plain, kv_cache=["ultraquant"] * 2) == packed
    assert new_tokens(model, kv_cache="bf16") == new_tokens(plain) != packed
    assert new_tokens(plain, num_beams=2, kv_cache="ultraquant") != packed


def prefill(model, tokens):
    with torch.inference_mode():
        out = model(tokens, use_cache=True)
    return getattr(out, "cache", None) or out.past_key_values


def after(model, cache, tokens):
    with torch.inference_mode():
        return model(tokens, past_key_values=cache).logits


CHANGES = {
    "picked": (lambda cache: cache.batch_select_indices(torch.tensor([2, 0])), [2, 0]),
    "repeated": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    "reordered": (lambda cache: cache.reorder_cache(torch.tensor([1, 1, 0])), [1, 1, 0]),
    "copied": (copy.deepcopy, [0, 1, 2]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_rows_of_a_packed_cache_move_with_their_codes(model, name):
    tokens = torch.tensor(toy.random_tokens(CONFIG, 3, 30), dtype=torch.long)
    expected = after(model, prefill(model, tokens[:, :20]), tokens[:, 20:])
    cache = prefill(model, tokens[:, :20])
    change, rows = CHANGES[name]
    cache = change(cache) or cache
    assert cache.layers[0].keys is None and cache.layers[0].parts[0].dtype == torch.uint8
    found = after(model, cache, tokens[rows, 20:])
    torch.testing.assert_close(found, expected[rows], atol=SAME, rtol=0)


def test_what_a_packed_cache_refuses_and_forgets(model):
    tokens = torch.tensor(toy.random_tokens(CONFIG, 1, 20), dtype=torch.long)
    cache = prefill(model, tokens)
    with pytest.raises(ValueError, match="holds tokens in another format than kv_cache='int4'"):
        model(tokens, past_key_values=cache, kv_cache="int4")
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(5)
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.layers[0].parts is None
    with torch.inference_mode():
        expected = model(tokens).logits
    torch.testing.assert_close(after(model, cache, tokens), expected, atol=SAME, rtol=0)


@pytest.mark.parametrize(
    ("kv_cache", "message"),
    [
        ("int3", "there is no format 'int3'; use one of bf16, fp8, ultraquant"),
        (["fp8"], "1 names for 2 layers; give one for each"),
        (["fp8"] * 2, "layer 1 has no softmax heads and no keys to store; give None"),
    ],
)
def test_formats_that_a_model_cannot_have_are_refused(kv_cache, message):
    ours = dataclasses.replace(CONFIG, mixers=(Hydra(fa_heads=(0,)), Hydra(fa_heads=())))
    config = HydraHeadConfig(**to_hf_config(ours, "float32"), kv_cache=kv_cache)
    with pytest.raises(ValueError, match=f"^kv_cache.*{message}"):
        HydraHeadModel(config)


def test_an_export_may_have_a_format_of_its_own(tmp_path, params, monkeypatch):
    monkeypatch.setattr(torch_export, "torch_is_installed", lambda: False)
    tokenizer = toy.write_tokenizer(tmp_path / "tokenizer")
    export = lambda config, **options: export_torch(
        tmp_path / "out", config, params, tokenizer, **options
    )
    export(CONFIG, kv_cache="ultraquant")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["kv_cache"] == "ultraquant"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| 32768 | {cache_bytes(CONFIG, 32768, kv_format='ultraquant'):,} |" in card
    assert load_hf(tmp_path / "out")[0] == CONFIG
    assert load(tmp_path / "out").config.kv_cache == "ultraquant"
    with pytest.raises(UserError, match="groups of 32 channels do not divide"):
        export(toy.MIXED, kv_cache="ultraquant")
