"""Checks an export's grouped attention: any map of heads, masks in blocks, no copies of keys."""

import itertools

import pytest

from tests.hydrahead_jax.interop.torch_toy import logits, make, tokens
from tests.hydrahead_jax.interop.with_torch import SAME, torch, transformers

# isort: split
from hydrahead_jax.interop.torch_model import attention_hydrahead

MAPS = {"regular": [0, 0, 1, 1], "irregular": [0, 1, 1, 1, 2], "not in order": [1, 0, 1]}


class Config:
    _attn_implementation = "sdpa"


@pytest.mark.parametrize("kv_of", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("length", [1, 5, 12])
@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_any_map_of_heads(kv_of, length, kind):
    torch.manual_seed(0)
    q_BNTH = torch.randn(2, len(kv_of), length, 8)
    k_BKSH, v_BKSH = torch.randn(2, 2, max(kv_of) + 1, 12, 8)
    real_BS = torch.ones(2, 12, dtype=torch.bool)
    real_BS[0, 2:6] = False
    config = Config()
    config._attn_implementation = kind
    attend = attention_hydrahead.GroupedAttention(config, 0, kv_of)
    for real in (None, real_BS):
        seen = torch.ones(12, 12, dtype=torch.bool).tril()[None, -length:]
        if real is not None:
            seen = seen & real[:, None] | torch.eye(12, dtype=torch.bool)[-length:]
        scores = q_BNTH @ k_BKSH[:, kv_of].transpose(2, 3) / 8**0.5
        weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
        expected = (weights @ v_BKSH[:, kv_of]).transpose(1, 2)
        tokens = attention_hydrahead.Tokens(None, None, None, real_BS=real)
        actual = attend(q_BNTH, k_BKSH, v_BKSH, tokens)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_blocks_of_queries_change_nothing(monkeypatch):
    model = make((0, 3), (0, 1, 2))
    batch = tokens(2, 70)
    mask = torch.ones_like(batch)
    mask[0, :9] = 0
    positions = torch.arange(70).remainder(33)[None]
    options = ({"attention_mask": mask}, {"position_ids": positions, "use_cache": False})
    whole = [logits(model, batch, **option) for option in options]
    monkeypatch.setattr(attention_hydrahead, "MASK_ELEMENTS", 1)
    for option, expected in zip(options, whole, strict=True):
        actual = logits(model, batch, **option)
        real = mask.bool() if "attention_mask" in option else torch.ones_like(mask).bool()
        torch.testing.assert_close(actual[real], expected[real], atol=SAME, rtol=0)


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the most elements that an operation other than a view returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        view = any(r.alias_info and not r.alias_info.is_write for r in function._schema.returns)
        if torch.is_tensor(out) and not view:
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("heads", [(0, 3), (0, 1, 2), (0, 1, 2, 3)])
def test_a_decode_step_copies_no_keys(heads):
    """All tensors that a step makes are smaller than the keys of one head."""
    model = make(heads, heads)
    with torch.inference_mode():
        cache = model(tokens(1, 600), use_cache=True).past_key_values
        model(tokens(1, 1), cache=cache)
        with Largest() as largest:
            model(tokens(1, 1), cache=cache)
    assert largest.elements < 600 * 8


def by_boundaries(module, query, key, value, mask, scaling, **kwargs):
    """Replaces flash attention: grouped, causal, with documents given by cu_seq_lens."""
    assert mask is None
    length = query.shape[2]
    cu_seq_lens = kwargs.get("cu_seq_lens_q", torch.tensor([0, length])).tolist()
    out = []
    for begin, end in itertools.pairwise(cu_seq_lens):
        q, k, v = (x[:, :, begin:end] for x in (query, key, value))
        options = {"scale": scaling, "enable_gqa": True, "is_causal": True}
        out.append(torch.nn.functional.scaled_dot_product_attention(q, k, v, **options))
    return torch.cat(out, 2).transpose(1, 2), None


def test_an_attention_function_of_the_user():
    """The function gets grouped heads and document boundaries; what it cannot do is refused."""
    transformers.AttentionInterface.register("by_boundaries", by_boundaries)
    batch = tokens(1, 40)
    positions = torch.arange(40).remainder(23)[None]
    model = make((0, 3), (0, 1, 2))
    options = {"position_ids": positions, "use_cache": False}
    expected = logits(model, batch), logits(model, batch, **options)
    model.set_attn_implementation("by_boundaries")
    actual = logits(model, batch), logits(model, batch, **options)
    torch.testing.assert_close(actual, expected, atol=SAME, rtol=0)
    with pytest.raises(ValueError, match="documents of one row apart only"):
        model(batch.repeat(2, 1), **options)
    mask = torch.ones_like(batch)
    with pytest.raises(ValueError, match="has no mask function, so padding cannot be hidden"):
        model(batch, attention_mask=mask)
