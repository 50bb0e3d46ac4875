"""Checks that probes.jsonl gives the same pairs back, and that people can read it."""

import dataclasses
import json

import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.haystack import Haystack
from hydrahead_jax.selection.probes.file import load_probes, save_probes
from hydrahead_jax.selection.probes.pairs import PairRow, stack_pairs
from hydrahead_jax.selection.probes.retrieval import SubProbe, probe_pairs, retrieval_probes
from tests.hydrahead_jax.evals.tokenizers import characters, merging

PROSE = Haystack(("Time went by. Was it late? No! Ça va: 雪. " * 20,))
GENERAL = SubProbe(name="facts", capability="general", counterfactual="prompt")
ROWS = [
    PairRow([40, 41, 42, 43], [40, 91, 92, 43], [34, 35], [36, 35]),
    PairRow([41], [44], [37], [38]),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns the file, and the probes and pairs that it was made of."""
    probes = retrieval_probes("ruler")
    pairs = [probe_pairs(p, merging(), PROSE, length=700, pairs=2, seed=0) for p in probes]
    path = tmp_path_factory.mktemp("run") / "probes.jsonl"
    save_probes(path, (*probes, GENERAL), (*pairs, stack_pairs(ROWS)), merging())
    return path, (*probes, GENERAL), (*pairs, stack_pairs(ROWS))


def test_the_same_pairs_come_back(saved):
    path, probes, pairs = saved
    loaded = load_probes(path)
    assert [p for p, _ in loaded] == [dataclasses.replace(p, documents=None) for p in probes]
    for (_, found), wanted in zip(loaded, pairs, strict=True):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


def test_a_line_says_what_was_changed(saved):
    lines = [json.loads(line) for line in saved[0].read_text(encoding="utf-8").split("\n")[:-1]]
    assert len(lines) == 7 * 2 + 2
    for line in lines[:10]:
        assert line["counterfactual"] == "value" and len(line["differences"]) >= 1
        assert line["answer"].strip() in line["prompt"]
        assert line["distractor"].strip() not in line["prompt"]
    keys = lines[-3]
    assert (keys["probe"], keys["counterfactual"]) == ("niah_multikey_2_keys", "keys")
    names = [part["clean"] for part in keys["differences"]]
    assert all(any(name in line for line in keys["prompt"].split("\n")) for name in names)
    assert len(names) >= 2


def test_differences_are_the_stretches_that_differ(tmp_path):
    path = tmp_path / "probes.jsonl"
    save_probes(path, [GENERAL], [stack_pairs(ROWS)], characters())
    first, second = (json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1])
    assert first["prompt"] == "GHIJ" and first["answer"] == "AB" and first["distractor"] == "CB"
    assert first["differences"] == [{"clean": "HI", "corrupt": "z{"}]
    assert second["differences"] == [{"clean": "H", "corrupt": "K"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no probes"),
        ('{"probe": "a"}', "line 1 holds no pair of a probe"),
        ("\n[1]", "line 2 holds no pair"),
        ("{", "line 1 holds no pair"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "probes.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_probes(path)


def test_a_damaged_line_is_refused(saved, tmp_path):
    path, lines = tmp_path / "probes.jsonl", saved[0].read_text(encoding="utf-8").split("\n")[:-1]
    damaged = json.loads(lines[3]) | {"corrupt_at": [10**6]}
    path.write_text("\n".join([*lines[:3], json.dumps(damaged)]))
    with pytest.raises(UserError, match="line 4 holds no pair"):
        load_probes(path)
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        load_probes(path.parent)
