"""Describes what is prepared, and where in the folder its parts lie."""

import dataclasses
from pathlib import Path
from typing import Literal

WORK = "work"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Holds the settings that are the same for every part.

    Attributes:
      out: folder of the shards.
      tokenizer: path of the tokenizer.json.
      end_of_text: token after every document.
      dtype: dtype of the tokens, such as "<u2".
      text_field: field of JSON objects, or column of Parquet files, that holds the text.
      shard_tokens: a shard ends with the document that reaches them.
      held_out: share of the documents that is held out, chosen by a hash of their text.
      split: which of the two sides is written.
      skip_bad: whether unusable records are left out; they end the work otherwise.
    """

    out: Path
    tokenizer: Path
    end_of_text: int
    dtype: str
    text_field: str
    shard_tokens: int
    held_out: float
    split: Literal["train", "held_out"]
    skip_bad: bool


def shard_name(part: int, shard: int) -> str:
    return f"shard-{part:05d}-{shard:03d}.arrayrecord"


def part_record(out: Path, part: int) -> Path:
    """Returns the file that is written when a part is done."""
    return out / WORK / f"part-{part:05d}.json"


def lengths_file(out: Path, shard: str) -> Path:
    """Returns the file of the lengths, in tokens, of a shard's documents."""
    return out / WORK / f"{shard}.npy"
