"""Uses an exported model as PyTorch users do: batch, continue, save, train, search."""

import numpy as np
import pytest

from hydrahead_jax.interop import load_hf, read_config
from tests.hydrahead_jax.interop import toy, with_torch
from tests.hydrahead_jax.interop.clients.tiny import CONFIG, load, logits, tokens
from tests.hydrahead_jax.interop.with_torch import SAME, torch, transformers


def test_nothing_is_missing_or_left_over(folder):
    _, report = with_torch.load(folder, output_loading_info=True)
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
            inputs = {"attention_mask": piece_mask, "past_key_values": cache}
            out = model(batch[:, start:end], use_cache=True, **inputs)
        cache, start = out.past_key_values, end
        actual.append(out.logits)
    assert cache.get_seq_length() == sum(pieces)
    actual, real = torch.cat(actual, dim=1), mask == 1
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
    assert (theirs - logits(model, batch)).abs().max() > 1e-3


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


def test_autocast_leaves_the_state_in_float32(model):
    batch = tokens(1, 70)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        out = model(batch, use_cache=True)
    assert out.past_key_values.layers[2].recurrent_states[0].dtype == torch.float32
    exact = logits(model, batch)
    assert (out.logits.float() - exact).abs().max() < 0.1 * (exact.max() - exact.min())


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
    rows = logits(model, out.sequences).log_softmax(-1)[:, 29:-1]
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
    assert torch.isfinite(logits(fresh.eval(), tokens(1, 10))).all()


def test_wrong_inputs_are_named(model):
    batch = tokens(1, 10)
    with pytest.raises(ValueError, match="is a StaticCache, and a HydraHead model keeps"):
        model(batch, cache=transformers.StaticCache(model.config, max_cache_len=20))
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 4\)"):
        model(batch, attention_mask=torch.ones(1, 4))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="5 mixers for num_hidden_layers=4"):
        type(model.config)(num_hidden_layers=4, mixers=model.config.mixers)
    with pytest.raises(ValueError, match="assisted generation is not supported"):
        model.generate(batch, assistant_model=model)
