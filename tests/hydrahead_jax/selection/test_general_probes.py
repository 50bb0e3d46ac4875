"""Checks general-ability pairs from a user's lines, and messages on lines that make none."""

import gzip
import json

import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.selection.probes.general import general_probes
from hydrahead_jax.selection.probes.pairs import pair_rows
from tests.hydrahead_jax.evals.tokenizers import characters, digit_splitting

PARIS = {"prompt": "Not Lyons: Paris is it. Say", "answer": " Paris", "distractor": " Lyons"}
FOUR = {"prompt": "Two and two is", "answer": " 4", "distractor": " 5"}
FIVE = {"prompt": "Two and 3.. is", "answer": " 5", "distractor": " 4"}
SIX = {"prompt": "3.. and 3.. is", "answer": " 6", "distractor": " 5"}
BLUE = {"prompt": "The sky is", "answer": " blue", "distractor": " blur"}
ONLY = {"prompt": "Long enough to be alone, it is", "answer": " so", "distractor": " no"}


def _write(tmp_path, *lines, name="facts.jsonl"):
    path = tmp_path / name
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(text) + "\n")
    return path


def _texts(tmp_path, *lines, tokenizer=None):
    """Returns prompt, corrupt prompt, answer and distractor of each pair, as text."""
    tokenizer = tokenizer or characters()
    ((_, pairs),) = general_probes([_write(tmp_path, *lines)], tokenizer)
    return [tuple(tokenizer.decode(list(ids)) for ids in row) for row in pair_rows(pairs)]


def _fails(tmp_path, *lines, tokenizer=None, **kwargs) -> str:
    path = _write(tmp_path, *lines, **kwargs)
    with pytest.raises(UserError) as error:
        general_probes([path], tokenizer or characters())
    assert str(path) in str(error.value)
    return str(error.value).replace(str(path), "FILE")


def test_swapped_where_the_prompt_names_the_answer(tmp_path):
    swapped = ("Not Lyons: Paris is it. Say ", "Not Paris: Lyons is it. Say ", "Paris", "Lyons")
    assert _texts(tmp_path, PARIS) == [swapped]
    part = {**FOUR, "prompt": "Nor 45 nor 4 but"}
    assert _texts(tmp_path, part) == [("Nor 45 nor 4 but ", "Nor 45 nor 5 but ", "4", "5")]


def test_another_line_where_it_does_not_and_one_with_the_distractor_first(tmp_path):
    two, three, six = (line["prompt"] + " " for line in (FOUR, FIVE, SIX))
    assert _texts(tmp_path, SIX, FOUR, "", FIVE) == [
        (six, three, "6", "5"),
        (two, three, "4", "5"),
        (three, two, "5", "4"),
    ]


def test_the_corrupt_prompt_that_a_line_gives(tmp_path):
    told = {**PARIS, "corrupt_prompt": "Not Paris: LYONS is it. Say"}
    assert _texts(tmp_path, told)[0][1] == "Not Paris: LYONS is it. Say "


def test_leading_tokens_that_both_share_are_prompt(tmp_path):
    told = {**BLUE, "corrupt_prompt": "The ink is"}
    assert _texts(tmp_path, told) == [("The sky is blu", "The ink is blu", "e", "r")]


def test_a_file_is_a_sub_probe_with_all_its_lines(tmp_path):
    paths = [
        _write(tmp_path, PARIS, FOUR, FIVE, name="some facts.jsonl"),
        _write(tmp_path, PARIS, name="more.jsonl"),
    ]
    (first, pairs), (second, _) = general_probes(paths, characters())
    assert (first.name, second.name) == ("some_facts", "more")
    assert {first.capability, second.capability} == {"general"}
    assert pairs.tokens_BT.shape == (3, 28 + 5) and pairs.answer_BJ.shape == (3, 5)
    assert pairs.segment_ids_BT[1].tolist() == [0] * 13 + [1] * 16 + [0] * 4


def test_unequal_tokens_name_their_lines(tmp_path):
    message = _fails(tmp_path, PARIS, FOUR, FIVE, PARIS, tokenizer=digit_splitting())
    assert message.startswith(
        "FILE: line 1: answer ' Paris' and distractor ' Lyons' have 4 and 6 tokens; line 2: no "
        'other prompt fits it; add a "corrupt_prompt" of as many tokens'
    )
    assert "line 3: no other" in message and "line 4: answer" in message
    told = {**PARIS, "corrupt_prompt": "Not Lyons: Paris it is not. Say"}
    assert "line 1: prompt and corrupt prompt have 27 and 31 tokens" in _fails(tmp_path, told)
    told = {**PARIS, "corrupt_prompt": PARIS["prompt"]}
    assert "line 1: prompt and corrupt prompt have the same tokens" in _fails(tmp_path, told)
    same = {**PARIS, "distractor": " Paris"}
    assert "line 1: answer ' Paris' and distractor ' Paris' have the same" in _fails(tmp_path, same)
    assert _fails(tmp_path, *[ONLY] * 12).endswith("and more; correct these")
    assert "line 2: no other prompt" in _fails(tmp_path, PARIS, ONLY)


def test_another_line_with_the_same_answer_is_no_counterfactual(tmp_path):
    assert "line 1: no other prompt" in _fails(tmp_path, FOUR, {**FIVE, "answer": " 4"})


def test_an_answer_that_runs_into_the_prompt(tmp_path):
    run = {**PARIS, "answer": "Paris", "distractor": "Lyons"}
    assert "line 1: prompt and answer run together; begin answer" in _fails(tmp_path, run)
    spaced = {"prompt": "This is what it ", "answer": "is", "distractor": "it"}
    message = _fails(tmp_path, spaced, tokenizer=digit_splitting())
    assert "line 1: the prompt's last tokens change where 'is' follows; a space between" in message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'prompt'", "FILE, line 2 is not JSON"),
        ("[1]", "FILE, line 2 must be a JSON object"),
        ({"prompt": "a", "answer": " b"}, "FILE, line 2 has no 'distractor'; it needs"),
        ({**PARIS, "foil": "x"}, "FILE, line 2 has an unknown field 'foil'; use only"),
        ({**PARIS, "f" * 999: "x"}, f"FILE, line 2 has an unknown field '{'f' * 79}; use only"),
        ({**PARIS, "answer": 4}, "FILE, line 2: 'answer' is 4 and must be text"),
        ({**PARIS, "distractor": " "}, "FILE, line 2: 'distractor' is ' ' and must be text"),
        ({**PARIS, "answer": "\ud800"}, "FILE, line 2: 'answer' is '\\ud800' and must be text"),
        ({**PARIS, "answer": " a\0"}, "FILE, line 2: 'answer' is ' a\\x00' and must be text"),
        ({**PARIS, "answer": None}, "FILE, line 2: 'answer' is None and must be text"),
        ('{"prompt": ' + "[" * 10**5, "FILE, line 2 is nested too deeply"),
        ('{"prompt": ' + "1" * 5000 + "}", "FILE, line 2 has no 'answer'; it needs"),
    ],
)
def test_lines_that_are_no_cloze(tmp_path, line, message):
    assert _fails(tmp_path, PARIS, line).startswith(message)


def test_a_byte_order_mark_and_carriage_returns_are_no_text(tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(PARIS).encode() + b"\r\n\r\n")
    ((_, pairs),) = general_probes([path], characters())
    assert len(pairs.tokens_BT) == 1


def test_arrays_and_compressed_files(tmp_path):
    lines = json.dumps(PARIS).encode() + b"\n"
    for name, raw in (("a.json", b"[" + lines + b"]"), ("b.jsonl.gz", gzip.compress(lines))):
        (tmp_path / name).write_bytes(raw)
        ((_, pairs),) = general_probes([tmp_path / name], characters())
        assert len(pairs.tokens_BT) == 1
    (tmp_path / "a.json").write_bytes(b"[" + lines + b', "\xe9"]')
    with pytest.raises(UserError, match=r"a\.json, item 2 is not UTF-8"):
        general_probes([tmp_path / "a.json"], characters())
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines)[:-9])
    with pytest.raises(UserError, match=r"cannot read .*b\.jsonl\.gz: "):
        general_probes([tmp_path / "b.jsonl.gz"], characters())


def test_files_that_hold_none(tmp_path):
    assert _fails(tmp_path, " ").startswith("FILE is empty")
    assert "another probe is named niah_x" in _fails(tmp_path, PARIS, name="niah_x.jsonl")
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.jsonl: No such file"):
        general_probes([tmp_path / "nowhere.jsonl"], characters())
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"bytes\.jsonl, line 1 is not UTF-8"):
        general_probes([tmp_path / "bytes.jsonl"], characters())
    path = _write(tmp_path, PARIS)
    with pytest.raises(UserError, match="another probe is named facts"):
        general_probes([path, path], characters())
