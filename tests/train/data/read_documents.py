"""Reads small files as the commands read text."""

import json
from pathlib import Path

from train.data.documents.counts import Counts, fate_of
from train.data.documents.find import find_files
from train.data.documents.parts import make_parts
from train.data.documents.read import read_part

MARK = b"\xef\xbb\xbf"


def read(path: Path, part_bytes: int = 2**30) -> tuple[list[str], Counts]:
    """Returns the documents of a file or folder, and the counts of all records."""
    texts, counts = [], Counts()
    for part in make_parts(find_files((path,)).files, part_bytes, "text"):
        for document in read_part(part, "text"):
            fate = fate_of(document)
            counts.add(fate, document)
            if fate == "written":
                texts.append(document.text)
    return texts, counts


def line(text) -> bytes:
    return json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"
