"""Checks that `prepare` gives the same folder after any interruption."""

import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from hydrahead_jax.errors import UserError
from tests.root import ROOT
from tests.train.data import prepared_text
from tests.train.data.prepared_text import SHARD_TOKENS, run, write_source
from train.data.documents import read
from train.data.prepared.folder import MANIFEST, PreparedFolder
from train.prepare.job import WORK


def test_killed_and_continued(tmp_path, tokenizer):
    """SIGKILL, sent when some shards exist, also ends the workers; the rest is made later."""
    source = prepared_text.write_jsonl(tmp_path / "text.jsonl", prepared_text.texts(3000))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "train", "prepare", source, "--tokenizer", tokenizer]
    command += ["--out", out, "--workers", "2", "--shard-tokens", str(SHARD_TOKENS)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while len(made := list((out / WORK).glob("shard*.json"))) < 5 and process.poll() is None:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    wait_for_group(process.pid)
    assert made and not (out / MANIFEST).is_file()
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.arrayrecord")}
    run(source, tokenizer, out)
    run(source, tokenizer, tmp_path / "whole")
    assert prepared_text.bytes_of(out) == prepared_text.bytes_of(tmp_path / "whole")
    kept = [path for path, made_at in times.items() if path.stat().st_mtime_ns == made_at]
    assert len(kept) >= 5


def wait_for_group(group: int) -> None:
    """Waits until every process of the group is gone."""
    for _ in range(1000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    os.killpg(group, signal.SIGKILL)
    raise AssertionError("a worker outlived the process that began it")


@pytest.mark.parametrize("stop_after", [1, 100, 399])
def test_stopped_inside_a_part(stop_after, tmp_path, tokenizer, monkeypatch):
    """A part of several shards continues after the last complete one."""
    documents = prepared_text.texts(400)
    source = write_source("jsonl.gz", tmp_path, documents)

    def stop(part, text_field):
        for number, document in enumerate(read_part(part, text_field)):
            if number == stop_after:
                raise UserError("stopped")
            yield document

    read_part = read.read_part
    monkeypatch.setattr("train.prepare.shards.read_part", stop)
    monkeypatch.setattr("train.prepare.tokenise._DOCUMENTS_AT_ONCE", 10)
    with pytest.raises(UserError, match="stopped"):
        run(source, tokenizer, tmp_path / "out")
    monkeypatch.setattr("train.prepare.shards.read_part", read_part)
    run(source, tokenizer, tmp_path / "out")
    assert prepared_text.documents_of(PreparedFolder(tmp_path / "out")) == prepared_text.encoded(
        documents
    )
    run(source, tokenizer, tmp_path / "whole")
    assert prepared_text.bytes_of(tmp_path / "out") == prepared_text.bytes_of(tmp_path / "whole")


def test_no_space_left(tmp_path, tokenizer):
    """The limit on the size of files stands for a full disk; the work is then continued."""
    source = prepared_text.write_jsonl(tmp_path / "text.jsonl", prepared_text.texts(200))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write to .*out: .*File too large"):
            run(source, tokenizer, tmp_path / "out", shard_tokens=10**6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run(source, tokenizer, tmp_path / "out", shard_tokens=10**6)["documents"] == 200
