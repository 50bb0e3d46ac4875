"""Checks rows of an exported model that hold padding anywhere, or several documents."""

import pytest

from tests.hydrahead_jax.interop import toy
from tests.hydrahead_jax.interop.torch_toy import logits, make, make_of, tokens
from tests.hydrahead_jax.interop.with_torch import SAME, torch

HEADS = ((0, 3), (), (0, 1, 2))
MODELS = {
    "default": toy.hybrid(*HEADS),
    "no convolution": toy.hybrid(*HEADS, short_conv=False),
    "shared projections": toy.hybrid(
        *HEADS, query_decomposition=False, fusion="gated", conv_silu=True
    ),
    "native hybrid": toy.NATIVE_HYBRID,
}
LENGTHS = {"two": (17, 25), "of one token": (1, 5, 1, 1, 9), "at chunks": (64, 64, 1, 63, 20)}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def model(request):
    return make_of(request.param)


def holes(model_length: int, *ranges):
    mask = torch.ones(1, model_length, dtype=torch.long)
    for begin, end in ranges:
        mask[:, begin:end] = 0
    return mask


def steps(model, pieces):
    """Returns the logits of the last token of each (ids, mask) piece, all on one cache."""
    cache, out = None, []
    for ids, mask in pieces:
        with torch.inference_mode():
            result = model(ids, attention_mask=mask, cache=cache, use_cache=True)
        cache = result.past_key_values
        out.append(result.logits[:, -1])
    return torch.stack(out)


@pytest.mark.parametrize("padding", [(40, 47), (20, 27), (0, 7), (46, 47)])
def test_steps_after_padding_anywhere(model, padding):
    """The next tokens follow the last real ones: in keys, convolutions, states and positions."""
    mask = holes(47, padding)
    ids, more = tokens(1, 47), tokens(1, 3, seed=2)
    real = ids[mask.bool()][None]
    expected = logits(model, torch.cat([real, more], 1), use_cache=False)[0, -3:]
    masks = [mask, *(torch.ones(1, 1, dtype=torch.long),) * 3]
    pieces = zip([ids, *more.split(1, 1)], masks, strict=True)
    torch.testing.assert_close(steps(model, pieces)[1:, 0], expected, atol=SAME, rtol=0)


def test_holes_in_every_piece_of_a_continuation(model):
    rows = tokens(2, 40)
    mask = torch.cat([holes(40, (3, 9), (11, 12), (20, 22)), holes(40, (0, 5), (14, 21))])
    pieces = [(rows[:, a:b], mask[:, a:b]) for a, b in ((0, 10), (10, 12), (12, 23), (23, 40))]
    actual = steps(model, pieces)[-1]
    for row in range(2):
        alone = rows[row][mask[row].bool()][None]
        expected = logits(model, alone, use_cache=False)[0, -1]
        torch.testing.assert_close(actual[row], expected, atol=SAME, rtol=0)


def packed(lengths, seed=3):
    documents = [tokens(1, length, seed=seed + i) for i, length in enumerate(lengths)]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return documents, torch.cat(documents, 1), positions


def boundaries(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("form", ["position_ids", "cu_seq_lens", "seq_idx"])
def test_documents_of_a_row_are_as_if_alone(model, lengths, form):
    documents, row, positions = packed(lengths)
    index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    cu_seq_lens = boundaries(lengths)
    options = {
        "position_ids": {"position_ids": positions},
        "cu_seq_lens": {"cu_seq_lens_q": cu_seq_lens, "cu_seq_lens_k": cu_seq_lens},
        "seq_idx": {"seq_idx": index, "position_ids": positions},
    }[form]
    if form == "cu_seq_lens":
        options |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
    expected = torch.cat([logits(model, document) for document in documents], 1)
    torch.testing.assert_close(logits(model, row, **options), expected, atol=SAME, rtol=0)


def test_rows_may_hold_different_documents(model):
    first, second = packed((30, 12)), packed((5, 37), seed=9)
    rows = torch.cat([first[1], second[1]])
    positions = torch.cat([first[2], second[2]])
    actual = logits(model, rows, position_ids=positions, use_cache=False)
    for row, (documents, _, _) in enumerate((first, second)):
        expected = torch.cat([logits(model, document) for document in documents], 1)[0]
        torch.testing.assert_close(actual[row], expected, atol=SAME, rtol=0)


def test_gradients_of_packed_documents():
    model = make((0, 3), ()).train()
    documents, row, positions = packed((64, 3, 30))
    sum(model(document).logits.square().sum() for document in documents).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(row, position_ids=positions).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        bound = 1e-4 * expected[name].abs().max()
        assert (parameter.grad - expected[name]).abs().max() <= bound, name


def test_what_cannot_be_kept_apart_is_refused():
    model = make((0, 3), ())
    _, row, positions = packed((17, 25))
    with pytest.raises(ValueError, match="a row of several documents cannot be continued"):
        model(row, position_ids=positions, use_cache=True)
    with pytest.raises(ValueError, match="position_ids start again within a row"):
        model(row, position_ids=positions, attention_mask=torch.ones_like(row))
    with pytest.raises(ValueError, match="cannot follow a cache"):
        cache = model(row, use_cache=True).past_key_values
        model(row, cache=cache, cu_seq_lens_q=boundaries((17, 25)))
    with pytest.raises(ValueError, match="go with one row of tokens; this batch has 2"):
        model(tokens(2, 42), cu_seq_lens_q=boundaries((17, 25)))
    with pytest.raises(ValueError, match="hides other earlier tokens"):
        cache = model(row, use_cache=True).past_key_values
        model(tokens(1, 1), cache=cache, attention_mask=holes(43, (0, 4)))
