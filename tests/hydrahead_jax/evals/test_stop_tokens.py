"""Checks where replies end, and which of their tokens count."""

import json
import re

import numpy as np
import pytest
from tokenizers import AddedToken

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.haystack import Haystack
from hydrahead_jax.evals.needle_questions import needle_questions
from hydrahead_jax.evals.ruler import RULER_TASKS
from hydrahead_jax.evals.stop_tokens import stop_tokens
from tests.hydrahead_jax.evals.tokenizers import _byte_level, digit_splitting
from train.files.run_folder import copy_tokenizer

ENDS = ("<|endoftext|>", "<|im_end|>", "<eos>", "</s>")


@pytest.fixture(scope="module")
def tokenizer():
    made = _byte_level(digit_splitting().pre_tokenizer)
    made.add_special_tokens([AddedToken(name, special=True) for name in ENDS])
    return made


def write(folder, **files):
    for name, fields in files.items():
        (folder / f"{name}.json").write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("files", "more"),
    [
        ({}, ()),
        ({"generation_config": {"eos_token_id": 358}}, ("<eos>",)),
        ({"generation_config": {"eos_token_id": [356, 359, 358]}}, ("<eos>", "</s>")),
        ({"generation_config": {"eos_token_id": None}}, ()),
        ({"generation_config": {"eos_token_id": [99999, -1]}}, ()),
        ({"config": {"eos_token_id": 359}}, ("</s>",)),
        ({"tokenizer_config": {"eos_token": "<eos>"}}, ("<eos>",)),
        ({"tokenizer_config": {"eos_token": {"content": "</s>", "lstrip": False}}}, ("</s>",)),
        ({"special_tokens_map": {"eos_token": {"content": "<eos>"}}}, ("<eos>",)),
        ({"tokenizer_config": {"eos_token": "<unknown>"}}, ()),
    ],
)
def test_stop_tokens_are_those_of_the_names_and_of_all_files(tokenizer, tmp_path, files, more):
    write(tmp_path, **files)
    expected = sorted(tokenizer.token_to_id(name) for name in (*ENDS[:2], *more))
    assert stop_tokens(tokenizer, tmp_path) == tuple(expected)


def test_a_file_that_is_no_object_is_refused(tokenizer, tmp_path):
    write(tmp_path, generation_config=[])
    with pytest.raises(UserError, match=r"generation_config\.json must hold a JSON object"):
        stop_tokens(tokenizer, tmp_path)


def test_a_run_keeps_the_stop_tokens_of_its_teacher(tokenizer, tmp_path):
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    tokenizer.save(str(teacher / "tokenizer.json"))
    write(teacher, generation_config={"eos_token_id": [358, 359]})
    copy_tokenizer(teacher, tmp_path / "run")
    assert stop_tokens(tokenizer, tmp_path / "run" / "tokenizer") == (356, 357, 358, 359)


@pytest.mark.parametrize("task", RULER_TASKS)
@pytest.mark.parametrize("end", ENDS)
def test_what_follows_the_end_of_a_reply_does_not_count(tokenizer, task, end):
    haystack = Haystack(("Time went by. Was it late? " * 30,), lambda: np.zeros(1, np.int32))
    stops = [tokenizer.token_to_id(name) for name in ENDS[2:]]
    questions = needle_questions(
        tokenizer, haystack, length=900, task=RULER_TASKS[task], documents=1, stops=stops
    )
    prompt = tokenizer.decode(questions.prompts[0].tolist())
    key = re.search(r"for (\S+) mentioned in the provided text is$", prompt)[1]
    value = re.search(rf"for {re.escape(key)} is: ([\w-]+)\.", prompt)[1]
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    is_right = lambda reply: questions.is_right[0](encode(reply))
    assert is_right(f" {value}") and is_right(f" {value.upper()}.{end} nothing")
    assert not is_right(f" nothing.{end} {value}") and not is_right(f"{end}{value}")
    assert not is_right(f" {value[:3]}{end}{value[3:]}")
    assert set(questions.stops) == {tokenizer.token_to_id(name) for name in ENDS}
