"""Checks that files in folders are read in a fixed order, or named as not read."""

import os
import socket
from pathlib import Path

import pytest

from hydrahead_jax.errors import UserError
from tests.train.data import prepared_text
from train.data.documents.find import Found, find_files
from train.data.prepared.folder import PreparedFolder
from train.data.text import Corpus, TextSource, read_documents
from train.prepare.command import prepare


def find(*sources: Path) -> Found:
    return find_files(sources)


def names(found: Found) -> list[str]:
    return [file.name for file in found.files]


def write(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("words")
    return folder


def test_files_are_read_in_the_order_of_their_names(tmp_path):
    write(tmp_path, "b.txt", "a/z.md", "a/y.PY", "c.Txt.GZ", "B.JSONL")
    wanted = ["0/B.JSONL", "0/a/y.PY", "0/a/z.md", "0/b.txt", "0/c.Txt.GZ"]
    found = find(tmp_path)
    assert names(found) == wanted and found.left_out() == ""
    assert names(find(tmp_path / "b.txt", tmp_path / "a")) == ["0/b.txt", "1/y.PY", "1/z.md"]


def test_what_is_not_read_is_counted_and_named(tmp_path, monkeypatch):
    write(tmp_path, "a.txt", "b.pdf", "c", "d.tar.gz", "e.bin", "sub/.x.txt", ".git/config.txt")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "self.txt").symlink_to("self.txt")
    os.mkfifo(tmp_path / "pipe.jsonl")
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind("plug.txt")
    found = find(tmp_path)
    assert names(found) == ["0/a.txt"]
    assert found.left_out() == (
        "not read: 2 hidden (.git, sub/.x.txt); 4 with other endings (b.pdf, c, d.tar.gz, ...); "
        "2 links that lead nowhere (gone.txt, self.txt); 2 no regular files (pipe.jsonl, plug.txt)"
    )
    for name, message in (("pipe.jsonl", "is not a regular file"), ("e.bin", "must end in .txt")):
        with pytest.raises(UserError, match=message):
            find(tmp_path / name)
    for name in ("gone.txt", "self.txt"):
        with pytest.raises(UserError, match="there is no file or folder"):
            find(tmp_path / name)


def test_links_are_followed_once(tmp_path):
    """Circles end, and nothing is read twice within a source."""
    source = write(tmp_path / "source", "a.txt", "sub/b.txt")
    other = write(tmp_path / "other", "c.txt", "deep/d.txt")
    (source / "sub" / "up").symlink_to(source)
    (source / "linked").symlink_to(other)
    (other / "back").symlink_to(source / "sub")
    (other / "round").symlink_to(other)
    (source / "one.txt").symlink_to(other / "c.txt")
    os.link(source / "a.txt", source / "hard.txt")
    found = find(source)
    wanted = ["a.txt", "hard.txt", "linked/back/b.txt", "linked/c.txt", "linked/deep/d.txt"]
    assert names(found) == [f"0/{name}" for name in wanted]
    left_out = {name for name, why in found.not_read if why == "read already by way of a link"}
    assert left_out == {"linked/back/up", "linked/round", "one.txt", "sub"}
    assert names(find(source / "linked" / "deep")) == ["0/d.txt"]


def test_hidden_sources_that_are_named_are_read(tmp_path):
    write(tmp_path, ".data/a.txt", ".b.txt")
    assert names(find(tmp_path / ".data", tmp_path / ".b.txt")) == ["0/a.txt", "1/.b.txt"]


def test_names_that_no_terminal_prints(tmp_path, capsys):
    """They are read, and shown escaped on one line."""
    folder = os.fsencode(tmp_path / "source")
    os.mkdir(folder)
    for name in (b"caf\xe9.jsonl", b"new\nline.bin", b"caf\xe9.txt"):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(b"words")
    source, tokenizer = tmp_path / "source", prepared_text.write_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"caf\\udce9\.jsonl, line 1 holds no JSON object"):
        prepare((source,), tokenizer, tmp_path / "out", workers=1)
    said = capsys.readouterr().out
    assert said == "not read: 1 with other endings (new\\nline.bin)\n"
    manifest = prepare((source,), tokenizer, tmp_path / "out", workers=2, skip_bad=True)
    assert manifest["documents"] == 1 and manifest["unusable"]["examples"] == [
        f'{source}/caf\\udce9.jsonl, line 1 holds no JSON object with a "text"'
    ]
    assert PreparedFolder(tmp_path / "out").manifest == manifest


def test_files_that_cannot_be_opened(tmp_path, monkeypatch):
    """Files of text stop the command before any work, wherever they lie."""
    source = write(tmp_path / "source", "a.txt", "b.txt", "sub/c.txt")
    tokenizer = prepared_text.write_tokenizer(tmp_path / "tokenizer")
    refuse(monkeypatch, source / "b.txt")
    with pytest.raises(UserError, match=r"cannot read .*b\.txt: Permission denied"):
        prepare((source,), tokenizer, tmp_path / "out", workers=1)
    with pytest.raises(UserError, match=r"cannot read .*b\.txt: Permission denied"):
        read_documents(TextSource(folder=str(source)))
    assert not (tmp_path / "out").exists()
    scan = os.scandir

    def deny(path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(UserError, match=r"cannot read .*sub: Permission denied"):
        find(source)


def refuse(monkeypatch, path: Path) -> None:
    """Makes opening the file fail, for root too."""
    opened = Path.open

    def deny(self, *arguments, **options):
        if self == path:
            raise PermissionError(13, "Permission denied")
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", deny)


def test_the_output_lies_in_a_linked_folder(tmp_path):
    source, other = write(tmp_path / "source", "a.txt"), write(tmp_path / "other", "b.txt")
    (source / "linked").symlink_to(other)
    tokenizer = prepared_text.write_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(UserError, match=f"out lies in the source {other}"):
        prepare((source,), tokenizer, other / "out", workers=1)


def test_sources_without_text(tmp_path):
    write(tmp_path, "a.pdf", ".b.txt")
    with pytest.raises(UserError) as error:
        find(tmp_path)
    left_out = "not read: 1 hidden (.b.txt); 1 with other endings (a.pdf)"
    assert str(error.value).startswith(f"there is no text in {tmp_path} ({left_out}); give files")


def test_text_sources_follow_the_same_rules(tmp_path, caplog):
    source = write(tmp_path, "a.txt", "b.bin", ".c.txt")
    (source / "d.jsonl").write_bytes(b'{"text": "one"}\n{"text": 1}\n{"text": ""}\n')
    with pytest.raises(UserError, match=r'd\.jsonl, line 2 holds a "text".*skip_bad=True'):
        read_documents(TextSource(folder=str(source)))
    text = TextSource(folder=str(source), skip_bad=True)
    corpus = Corpus(prepared_text.tokenizer())
    assert corpus.haystack(text).documents == ("words", "one")
    assert len(corpus.documents(text)) == 2
    [record] = caplog.records
    assert record.message == (
        f"{source}: not read: 1 hidden (.c.txt); 1 with other endings (b.bin); left out: 1 empty, "
        f'1 unusable ({source}/d.jsonl, line 2 holds a "text" that is not text)'
    )
    assert read_documents(TextSource(folder=str(source / "a.txt"))) == ["words"]
    (source / "e.jsonl").write_text('{"body": "two"}')
    (source / "d.jsonl").unlink()
    body = TextSource(folder=str(source), text_field="body")
    assert read_documents(body) == ["words", "two"]
    (source / "empty.txt").write_bytes(b"\xef\xbb\xbf\n")
    with pytest.raises(UserError, match=r"there is no text in .*empty\.txt; left out: 1 empty"):
        read_documents(TextSource(folder=str(source / "empty.txt")))
