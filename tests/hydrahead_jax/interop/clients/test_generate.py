"""Checks `generate`: greedy, sampled, padded, in chunks, streamed, and empty prompts."""

import pytest

from hydrahead_jax.generate import generate
from tests.hydrahead_jax.interop.clients.tiny import (
    CONFIG,
    PADDING,
    assert_refused,
    new_tokens,
    padded_batch,
    tokens,
)
from tests.hydrahead_jax.interop.with_torch import torch, transformers


@pytest.fixture(scope="module")
def ours(params):
    """Returns 64 greedy tokens of our own generation for each row of the padded batch."""
    rows = padded_batch()["input_ids"].tolist()
    prompts = [rows[0], rows[1][PADDING:]]
    return generate(CONFIG, params, prompts, max_new_tokens=64, beyond_trained_length=True)


def test_64_greedy_tokens_of_a_padded_batch_are_ours(model, ours):
    assert new_tokens(model, padded_batch(), 64) == ours


@pytest.mark.parametrize("row", [0, 1])
def test_a_prompt_without_a_mask_gives_the_same(model, ours, row):
    start = PADDING if row else 0
    prompt = padded_batch()["input_ids"][row : row + 1, start:]
    assert new_tokens(model, {"input_ids": prompt}, 64) == [ours[row]]


def test_without_a_cache(model, ours):
    expected = [row[:16] for row in ours]
    assert new_tokens(model, padded_batch(), 16, use_cache=False) == expected


@pytest.mark.parametrize("size", [1, 3, 64, 79, 200])
def test_prefill_in_chunks(model, ours, size):
    assert new_tokens(model, padded_batch(), 8, prefill_chunk_size=size) == [
        row[:8] for row in ours
    ]


def test_samples_depend_on_the_seed_and_not_on_the_cache(model):
    def sample(seed, **options):
        torch.manual_seed(seed)
        return new_tokens(model, padded_batch(), 24, do_sample=True, top_k=20, **options)

    first = sample(0)
    assert first == sample(0)
    assert first == sample(0, use_cache=False)
    assert first != sample(1)


def test_several_samples_of_a_prompt(model):
    prompt = {"input_ids": tokens(1, 20)}
    torch.manual_seed(0)
    options = {"do_sample": True, "num_return_sequences": 3}
    cached = new_tokens(model, prompt, 16, **options)
    torch.manual_seed(0)
    assert cached == new_tokens(model, prompt, 16, use_cache=False, **options)
    assert len({tuple(row) for row in cached}) == 3


def test_streaming_yields_the_tokens_in_order(model, ours):
    class Collect:
        def __init__(self):
            self.pieces, self.ended = [], False

        def put(self, value):
            self.pieces.append(value.flatten().tolist())

        def end(self):
            self.ended = True

    collect = Collect()
    prompt = padded_batch()["input_ids"][:1]
    model.generate(prompt, max_new_tokens=12, streamer=collect)
    assert collect.ended
    assert collect.pieces[0] == prompt[0].tolist()
    assert [token for piece in collect.pieces[1:] for token in piece] == ours[0][:12]


def test_each_of_several_stop_tokens_ends_a_row(model, ours):
    stops = [ours[0][5], 96]
    out = new_tokens(model, padded_batch(), 20, eos_token_id=stops, pad_token_id=0)[0]
    end = next(i for i, token in enumerate(ours[0]) if token in stops) + 1
    assert out[:end] == ours[0][:end]
    assert set(out[end:]) <= {0}


def test_embeddings_may_stand_for_tokens(model, ours):
    prompt = padded_batch()["input_ids"][:1]
    embeddings = model.get_input_embeddings()(prompt)
    out = model.generate(inputs_embeds=embeddings, max_new_tokens=12)
    assert out.tolist() == [ours[0][:12]]


@pytest.mark.parametrize("shape", [(1, 0), (0, 5), (2, 0)])
def test_nothing_to_continue_is_refused(model, shape):
    empty = torch.zeros(shape, dtype=torch.long)
    assert_refused(lambda: model(empty), "no token")
    assert_refused(
        lambda: model.generate(empty, attention_mask=empty, max_new_tokens=2), "no token|empty"
    )


def test_text_generation_pipeline(folder, model):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    tokenizer.pad_token = "<end>"
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompt = " ".join(f"w{i}" for i in range(1, 18))
    [out] = pipe(prompt, max_new_tokens=12, max_length=None, return_tensors=True, use_cache=True)
    expected = new_tokens(model, {"input_ids": torch.arange(1, 18)[None]}, 12, use_cache=False)
    assert out["generated_token_ids"][-12:] == expected[0]
