"""Checks folders of prepared text: plans beside it, calibration, and what cannot be read."""

import dataclasses
import json

import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from tests.train.data import prepared_text
from tests.train.data.prepared_text import LENGTH, config
from train.data.batches import DataConfig, NeedleData, calibration_tokens, check_data, make_batches
from train.data.prepared.folder import LENGTHS, MANIFEST, PreparedText
from train.data.prepared.plans import PLANS
from train.data.prepared.rows import open_folders
from train.data.text import Corpus, TextSource
from train.data.tokenizer import train_tokenizer, vocabulary_checksum


def test_plan_is_kept_beside_the_text(tmp_path, corpus):
    """The plan is saved where it can be written; the rows are the same where it cannot."""
    folder = prepared_text.prepared(tmp_path / "kept", prepared_text.texts(40))
    kept = next(make_batches(config(folder), corpus, 0))
    assert [path.name.split("-")[0] for path in (folder.path / PLANS).iterdir()] == ["best_fit"]
    other = prepared_text.prepared(tmp_path / "not kept", prepared_text.texts(40))
    (other.path / PLANS).write_text("in the way")
    np.testing.assert_array_equal(
        next(make_batches(config(other), corpus, 0)).tokens_BT, kept.tokens_BT
    )


@pytest.mark.parametrize("rows", [1, 5])
def test_calibration_tokens(rows, folders, corpus, tmp_path):
    streams = [[t for d in prepared_text.documents_of(f) for t in d] for f in folders]
    found = calibration_tokens(config(folders[0]), corpus, rows, 100)
    starts = np.linspace(0, len(streams[0]) - 100, rows).astype(int)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, [streams[0][s : s + 100] for s in starts])
    both = calibration_tokens(config(*folders, weights=(1.0, 4.0)), corpus, 5, 100)
    np.testing.assert_array_equal(both[:2, :100], [s[:100] for s in streams])
    whole = calibration_tokens(config(folders[0]), corpus, 1, 10**6)
    assert whole.shape == (1, len(streams[0]))
    (tmp_path / "a.txt").write_text("\n\n".join(prepared_text.texts(5)))
    text = DataConfig(length=LENGTH, batch=1, text=TextSource(folder=str(tmp_path)))
    [document] = prepared_text.encoded([(tmp_path / "a.txt").read_text()])
    last = calibration_tokens(text, corpus, rows + 1, 100)[-1]
    assert tuple(last) == document[-100:] and last.dtype == np.int32


def test_other_text_than_the_run_began_with(tmp_path, corpus):
    folder = prepared_text.prepared(tmp_path / "a", prepared_text.texts(40))
    other = prepared_text.prepared(tmp_path / "b", prepared_text.texts(40, 1))
    state = make_batches(config(folder), corpus, 0).get_state()
    with pytest.raises(UserError, match="is not the text that the run began with"):
        make_batches(config(other), corpus, 0).set_state(state)


def damage(folder, what: str) -> str:
    """Damages the folder, and returns the message that this must lead to."""
    manifest = json.loads((folder.path / MANIFEST).read_text())
    if what == "unfinished":
        (folder.path / MANIFEST).unlink()
        return "holds no finished text.*run the `prepare` command of this folder again"
    if what == "shard":
        shard = folder.path / manifest["shards"][0]["name"]
        shard.write_bytes(shard.read_bytes()[:-1])
        return "is missing or damaged; delete the folder"
    changes = {"empty": {"documents": 0}, "format": {"format": 0}}[what]
    (folder.path / MANIFEST).write_text(json.dumps(manifest | changes))
    return {"empty": "holds no documents", "format": "has another format"}[what]


@pytest.mark.parametrize("what", ["unfinished", "shard", "empty", "format"])
def test_folders_that_cannot_be_read(what, tmp_path, corpus):
    folder = prepared_text.prepared(tmp_path / "a", prepared_text.texts(5))
    with pytest.raises(UserError, match=damage(folder, what)):
        make_batches(config(folder), corpus, 0)


def test_shard_damaged_while_training(tmp_path, corpus):
    folder = prepared_text.prepared(tmp_path / "a", prepared_text.texts(5))
    batches = make_batches(config(folder), corpus, 0)
    for shard in folder.path.glob("*.arrayrecord"):
        shard.write_bytes(b"\x00" * shard.stat().st_size)
    with pytest.raises(UserError, match="cannot read"):
        next(batches)


def test_no_such_folder_and_another_tokenizer(folders, tmp_path):
    other = Corpus(train_tokenizer(["other"], vocab=301, keys=8, values=9))
    with pytest.raises(UserError, match="prepared with another tokenizer than the model's"):
        make_batches(config(folders[0]), other, 0)
    text = PreparedText(folder=str(tmp_path / "missing"))
    with pytest.raises(UserError, match=r"there is no prepared text .*missing; make it by"):
        open_folders((text,), vocabulary_checksum(other.tokenizer))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prepared": (PreparedText(folder="a", weight=0.0),)}, "the weight 0.0 of a must be"),
        (
            {"needles": NeedleData(share=1.0, lengths=(40, 48), needles=(1, 1))},
            "needle documents are made from `text`, not from `prepared` text",
        ),
    ],
)
def test_settings_that_do_not_fit(change, message):
    data = DataConfig(length=LENGTH, batch=1, prepared=(PreparedText(folder="a"),))
    with pytest.raises(UserError, match=message):
        check_data(dataclasses.replace(data, **change), "stage 'x'")
    check_data(data, "stage 'x'")


def test_lengths_stay_in_the_file(folders):
    lengths = folders[0].lengths()
    assert isinstance(lengths, np.memmap) and lengths.filename.name == LENGTHS
