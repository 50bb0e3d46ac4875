"""Checks that token ids beyond the embedding are refused before anything is computed."""

import dataclasses
import json

import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.token_ids import check_token_ids, check_tokenizer
from tests.train import small
from train.__main__ import main
from train.data.text import TextSource, load_corpus
from train.data.tokenizer import load_tokenizer

VOCAB, SIZE = small.VOCAB, small.tokenizer().get_vocab_size()


@pytest.fixture
def work(tmp_path):
    small.write_config(tmp_path)
    return tmp_path


def edit_tokenizer(work, change) -> None:
    path = work / "teacher" / "tokenizer.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def with_hole(fields) -> None:
    fields["model"]["vocab"]["\u0120return"] = 400


def with_added(number: int):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    token = {"id": number, "content": "<more>", "special": True, **flags}
    return lambda fields: fields["added_tokens"].append(token)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (with_hole, "gives '\u0120return' the id 400, and the model knows 0 to 299"),
        (with_added(VOCAB), "gives '<more>' the id 300, and the model knows 0 to 299"),
        (with_added(5000), "gives '<more>' the id 5000, and the model knows 0 to 299"),
    ],
)
def test_a_tokenizer_beyond_the_embedding_is_refused(work, change, sentence):
    edit_tokenizer(work, change)
    path = work / "teacher" / "tokenizer.json"
    with pytest.raises(UserError) as caught:
        load_corpus(path, small.TEACHER)
    assert str(caught.value) == f"{path} {sentence}; use the model's own tokenizer"


def test_a_tokenizer_with_holes_inside_the_embedding_is_read(work):
    edit_tokenizer(work, with_hole)
    larger = dataclasses.replace(small.TEACHER, vocab=401)
    corpus = load_corpus(work / "teacher" / "tokenizer.json", larger)
    documents = corpus.documents(TextSource(folder=str(work / "text")))
    assert max(int(tokens.max()) for tokens in documents) <= 400


@pytest.mark.parametrize(
    "command",
    [
        ["transfer", "experiment.py"],
        ["cache-teacher", "experiment.py"],
        ["evaluate", "teacher", "lengths=(24,)"],
        ["select", "selection.py"],
    ],
    ids=lambda command: command[0],
)
def test_commands_refuse_it(work, monkeypatch, capsys, command):
    edit_tokenizer(work, with_hole)
    (work / "selection.py").write_text(
        "from train.select.config import SelectConfig\n\n\n"
        "def config():\n    return SelectConfig(run='selected', teacher='teacher')\n"
    )
    cached = "        teacher_cache=TeacherCache(folder='cache', tokens=4))\n"
    if command[0] == "cache-teacher":
        text = (work / "experiment.py").read_text()
        text = "import dataclasses\nfrom train.stage.teacher_cache import TeacherCache\n" + text
        made = "    made = small.transfer"
        text = text.replace("    return small.transfer", made) + (
            "    distill = dataclasses.replace(made.stages[1],\n"
            f"{cached}"
            "    return dataclasses.replace(made, stages=(made.stages[0], distill))\n"
        )
        (work / "experiment.py").write_text(text)
    monkeypatch.chdir(work)
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "the id 400, and the model knows 0 to 299" in error and error.count("\n") == 1
    assert not {"run", "selected", "cache"} & {path.name for path in work.iterdir()}


def test_checks_name_what_is_wrong():
    check_token_ids(np.array([0, VOCAB - 1]), VOCAB, "x")
    check_token_ids(np.array([], np.int32), VOCAB, "x")
    check_tokenizer(small.tokenizer(), SIZE)
    for ids, sentence in [
        ([-1, 5], "x has token ids from -1 to 5, the model knows 0 to 299"),
        ([300], "x has token ids from 300 to 300"),
        ([1.0], "x: token ids must be whole numbers, not float64"),
        ([True], "x: token ids must be whole numbers, not bool"),
    ]:
        with pytest.raises(UserError, match=sentence):
            check_token_ids(np.array(ids), VOCAB, "x")
    with pytest.raises(UserError, match=r"the tokenizer gives .* the id 285, .* 0 to 284"):
        check_tokenizer(small.tokenizer(), SIZE - 1)


def test_added_ids_that_the_library_would_renumber_count(work):
    edit_tokenizer(work, with_added(5000))
    tokenizer = load_tokenizer(work / "teacher" / "tokenizer.json")
    assert tokenizer.token_to_id("<more>") == SIZE
    with pytest.raises(UserError, match="the id 5000"):
        load_corpus(work / "teacher" / "tokenizer.json", small.TEACHER)
