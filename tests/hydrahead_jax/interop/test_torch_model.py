"""Uses an exported model as PyTorch users do: batch, continue, save, train, search."""

import numpy as np
import pytest

from hydrahead_jax.interop import export_torch, load_hf, read_config, torch_export
from tests.hydrahead_jax.interop import toy

torch = pytest.importorskip(
    "torch",
    reason="PyTorch is not installed in this environment: parity tests run in the Python 3.11 cell",
)
transformers = pytest.importorskip("transformers")

CONFIG = toy.hybrid((0, 3), ())
SAME = 2e-5
# The cache's name among the outputs of this version of transformers.
OUTPUTS = transformers.modeling_outputs.CausalLMOutputWithPast.__annotations__
CACHE_FIELD = "cache" if "cache" in OUTPUTS else "past_key_values"


def load(folder, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, **options
    )


def tokens(batch, length):
    return torch.tensor(toy.random_tokens(CONFIG, batch, length), dtype=torch.long)


def logits(model, input_ids, **options):
    with torch.inference_mode():
        return model(input_ids=input_ids, **options).logits.numpy()


@pytest.fixture(scope="module")
def params():
    return toy.random_params(CONFIG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, params):
    folder = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_export, "torch_is_installed", lambda: False)
        export_torch(folder / "out", CONFIG, params, toy.write_tokenizer(folder / "tokenizer"))
    return folder / "out"


@pytest.fixture
def model(folder):
    model = load(folder)
    model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=0)
    return model


def test_nothing_is_missing_or_left_over(folder):
    _, report = load(folder, output_loading_info=True)
    assert not any(report.values()), report


def test_a_padded_row_equals_the_row_alone(model):
    alone = tokens(1, 50)
    padding = tokens(1, 30)
    padded = torch.cat([padding, alone], dim=1)
    batch = torch.cat([padded, tokens(1, 80)])
    mask = torch.ones_like(batch)
    mask[0, :30] = 0
    expected = logits(model, alone)[0]
    actual = logits(model, batch, attention_mask=mask)[0, 30:]
    np.testing.assert_allclose(actual, expected, atol=SAME, rtol=0)
    options = {"max_new_tokens": 64}
    expected = model.generate(alone, attention_mask=torch.ones_like(alone), **options)[0, 50:]
    actual = model.generate(batch, attention_mask=mask, **options)[0, 80:]
    assert actual.tolist() == expected.tolist()


def test_what_padding_holds_does_not_matter(model):
    batch = tokens(1, 70)
    mask = torch.ones_like(batch)
    mask[0, :30] = 0
    other = batch.clone()
    other[0, :30] = (batch[0, :30] + 1) % 97
    first, second = (logits(model, b, attention_mask=mask)[0, 30:] for b in (batch, other))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("pieces", [(1,) * 12, (64, 1, 7), (3, 70, 2)])
def test_a_sequence_may_come_in_pieces(model, pieces):
    """Masks may cover the new tokens, or all so far."""
    batch = tokens(2, sum(pieces))
    mask = torch.ones_like(batch)
    mask[0, :2] = 0
    expected = logits(model, batch, attention_mask=mask)
    cache, start, actual = None, 0, []
    for number, size in enumerate(pieces):
        end = start + size
        piece_mask = mask[:, (0 if number % 2 else start) : end]
        with torch.inference_mode():
            out = model(
                batch[:, start:end],
                attention_mask=piece_mask,
                past_key_values=cache,
                use_cache=True,
            )
        cache, start = out[CACHE_FIELD], end
        actual.append(out.logits.numpy())
    assert cache.get_seq_length() == sum(pieces)
    actual = np.concatenate(actual, axis=1)
    real = mask.numpy() == 1
    np.testing.assert_allclose(actual[real], expected[real], atol=SAME, rtol=0)


def test_saved_by_torch_and_loaded_again(model, tmp_path, params):
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    batch = tokens(1, 20)
    np.testing.assert_array_equal(logits(again, batch), logits(model, batch))
    assert read_config(tmp_path) == CONFIG
    assert toy.same_tree(load_hf(tmp_path)[1], params)


def test_training_leaves_the_query_scale_out(model, params):
    batch = tokens(1, 20)
    model.train()
    theirs = logits(model, batch)
    ours = toy.logits(CONFIG, params, batch.numpy().astype(np.int32), training=True)
    np.testing.assert_allclose(theirs, ours, atol=1e-4, rtol=0)
    model.eval()
    assert np.abs(theirs - logits(model, batch)).max() > 1e-3


def test_loss_is_the_cross_entropy_of_the_next_token_and_reaches_every_weight(model):
    batch = tokens(2, 70)
    labels = batch.clone()
    labels[0, :9] = -100
    out = model.train()(input_ids=batch, labels=labels)
    predicted = out.logits[:, :-1].log_softmax(-1)
    each = -predicted.gather(-1, batch[:, 1:, None])[..., 0]
    expected = each[labels[:, 1:] != -100].mean()
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name
        assert torch.isfinite(weight.grad).all(), name


def test_bfloat16_keeps_decay_and_gamma_in_float32(folder):
    model = load(folder, dtype=torch.bfloat16)
    gdn = model.model.layers[0].self_attn.gdn
    assert gdn.q_proj.weight.dtype == torch.bfloat16
    assert {gdn.a_log.dtype, gdn.dt_bias.dtype, gdn.gamma.dtype} == {torch.float32}
    batch = tokens(1, 20)
    with torch.inference_mode():
        out = model(batch, use_cache=True)
    assert out.logits.dtype == torch.bfloat16
    assert out[CACHE_FIELD].layers[0].recurrent_states[0].dtype == torch.float32
    exact = logits(load(folder), batch)
    assert np.abs(out.logits.float().numpy() - exact).max() < 0.1 * np.ptp(exact)


def test_autocast_leaves_the_state_in_float32(model):
    batch = tokens(1, 70)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        out = model(batch, use_cache=True)
    assert out[CACHE_FIELD].layers[1].recurrent_states[0].dtype == torch.float32
    exact = logits(model, batch)
    assert np.abs(out.logits.float().numpy() - exact).max() < 0.1 * np.ptp(exact)


def test_beams_carry_their_states_along(model):
    """Beams swap rows of the cache; their scores equal what the model says of their tokens."""
    batch = tokens(2, 30)
    out = model.generate(
        batch,
        attention_mask=torch.ones_like(batch),
        num_beams=3,
        max_new_tokens=12,
        output_scores=True,
        return_dict_in_generate=True,
    )
    rows = torch.tensor(logits(model, out.sequences)).log_softmax(-1)[:, 29:-1]
    score = rows.gather(-1, out.sequences[:, 30:, None])[..., 0].sum(1)
    torch.testing.assert_close(out.sequences_scores * 12, score, atol=1e-3, rtol=0)


def test_logits_to_keep_hidden_states_and_tuples(model):
    batch = tokens(1, 10)
    np.testing.assert_allclose(
        logits(model, batch, logits_to_keep=1), logits(model, batch)[:, -1:], atol=SAME, rtol=0
    )
    with torch.inference_mode():
        out = model(batch, output_hidden_states=True, use_cache=False)
        plain = model(batch, use_cache=False, return_dict=False)
    assert len(out.hidden_states) == CONFIG.layers + 1
    assert CACHE_FIELD not in out
    torch.testing.assert_close(plain[0], out.logits)


def test_new_model_starts_with_open_gates_and_an_identity_convolution(model):
    torch.manual_seed(0)
    fresh = type(model)(model.config)
    gdn = fresh.model.layers[0].self_attn.gdn
    assert gdn.g_proj.weight.abs().max() == 0
    taps = gdn.k_conv.weight
    assert (taps[..., -1] == 1).all() and taps[..., :-1].abs().max() == 0
    assert (gdn.a_log >= 0).all() and (gdn.a_log <= np.log(16)).all()
    step = torch.nn.functional.softplus(gdn.dt_bias)
    assert (step > 0.99e-3).all() and (step < 1.01e-1).all()
    assert np.isfinite(logits(fresh.eval(), tokens(1, 10))).all()


def test_wrong_inputs_are_named(model):
    batch = tokens(1, 10)
    with pytest.raises(ValueError, match="is a StaticCache, and a HydraHead model keeps"):
        model(batch, cache=transformers.StaticCache(model.config, max_cache_len=20))
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 4\)"):
        model(batch, attention_mask=torch.ones(1, 4))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="2 mixers for num_hidden_layers=3"):
        type(model.config)(num_hidden_layers=3, mixers=model.config.mixers)
    with pytest.raises(ValueError, match="assisted generation is not supported"):
        model.generate(batch, assistant_model=model)
