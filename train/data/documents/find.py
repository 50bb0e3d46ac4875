"""Finds the files of text that are named or lie in folders, and lists the files that it skips."""

import dataclasses
import os
import stat
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from hydrahead_jax.errors import UserError
from hydrahead_jax.text_files.names import shown
from train.data.documents.forms import ENDINGS, Form, form_of


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """Describes a file of text.

    Attributes:
      path: where it is.
      name: number of its source and path within; the same wherever the sources lie.
      bytes: its size.
      form: how it holds documents.
    """

    path: Path
    name: str
    bytes: int
    form: Form


class NotRead(NamedTuple):
    """Names a file or folder of a source that is left out; `why` is a phrase after the name."""

    name: str
    why: str


class Found(NamedTuple):
    """Lists the files of the sources.

    Attributes:
      files: files that are read, in a fixed order.
      not_read: all other files.
      folders: every folder that was looked into, links resolved.
    """

    files: list[SourceFile]
    not_read: list[NotRead]
    folders: list[Path]

    def left_out(self, named: int = 3) -> str:
        """Counts the files that are not read and names some of each kind; may be empty."""
        kinds = []
        for why, count in Counter(why for _, why in self.not_read).items():
            names = [shown(name) for name, reason in self.not_read if reason == why][:named]
            more = ", ..." if count > named else ""
            kinds.append(f"{count} {why} ({', '.join(names)}{more})")
        return f"not read: {'; '.join(kinds)}" if kinds else ""


def find_files(sources: tuple[Path, ...]) -> Found:
    """Finds the files that are given or lie in the given folders.

    Links are followed. Files and folders within a folder are not read where their names begin with
    a dot, or where they were read already by way of a link.

    Raises:
      UserError: a source is missing or of an unknown kind, a folder cannot be opened, or there is
        no text.
    """
    found = Found([], [], [])
    for number, source in enumerate(sources):
        try:
            if source.is_dir():
                _Walk(number, source, found).look_into(source)
            else:
                found.files.append(_named_file(number, source))
        except OSError as error:
            where = shown(error.filename or source)
            raise UserError(
                f"cannot read {where}: {error.strerror}; make it readable, or leave it out"
            ) from error
    if not any(file.bytes for file in found.files):
        names = ", ".join(map(shown, sources))
        left_out = found.left_out(named=1)
        raise UserError(
            f"there is no text in {names}" + (f" ({left_out})" if left_out else "") + "; "
            f"give files that end in {ENDINGS}"
        )
    return found


def _named_file(number: int, path: Path) -> SourceFile:
    if not path.exists():
        raise UserError(f"there is no file or folder {shown(path)}; check the path")
    if not path.is_file():
        raise UserError(f"{shown(path)} is not a regular file; write its content to one")
    form = form_of(path.name)
    if form is None:
        raise UserError(f"{shown(path)} must end in {ENDINGS}")
    return SourceFile(path, f"{number}/{path.name}", path.stat().st_size, form)


class _Walk:
    """Walks through one source."""

    def __init__(self, number: int, source: Path, found: Found):
        self._number, self._source, self._found = number, source, found
        self._folders: set[tuple[int, int]] = set()
        self._files: dict[tuple[int, int], bool] = {}

    def look_into(self, folder: Path) -> None:
        """Adds the files of a folder, in the order of their names."""
        about = folder.stat()
        self._folders.add((about.st_dev, about.st_ino))
        self._found.folders.append(folder.resolve())
        with os.scandir(folder) as entries:
            entries = sorted(entries, key=lambda entry: entry.name)
        for entry in entries:
            path = folder / entry.name
            if why := self._add(path, entry.name, entry.is_symlink()):
                self._found.not_read.append(NotRead(self._within(path), why))

    def _add(self, path: Path, name: str, is_link: bool) -> str:
        """Adds a file, or the files of a folder; returns why not, empty if it did."""
        if name.startswith("."):
            return "hidden"
        try:
            about = path.stat()
        except OSError:
            if not is_link:
                raise
            return "links that lead nowhere"
        key = (about.st_dev, about.st_ino)
        if stat.S_ISDIR(about.st_mode):
            if key in self._folders:
                return "read already by way of a link"
            self.look_into(path)
            return ""
        form = form_of(name)
        if form is None:
            return "with other endings"
        if not stat.S_ISREG(about.st_mode):
            return "no regular files"
        if key in self._files and (is_link or self._files[key]):
            return "read already by way of a link"
        self._files[key] = is_link
        name = f"{self._number}/{self._within(path)}"
        self._found.files.append(SourceFile(path, name, about.st_size, form))
        return ""

    def _within(self, path: Path) -> str:
        return path.relative_to(self._source).as_posix()
