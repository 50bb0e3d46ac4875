"""Counts what became of documents, and names some of those that could not be used."""

import dataclasses
from typing import Literal, get_args

from train.data.documents.read import Document

Fate = Literal["written", "empty", "other_split", "unusable"]
_MOST_EXAMPLES = 10


@dataclasses.dataclass
class Counts:
    """Counts what became of the documents so far.

    Attributes:
      written: documents that are used.
      empty: documents without text, or with white space alone.
      other_split: documents of the split that is not written.
      unusable: records that are no documents.
      mended: written documents in which halves of surrogate pairs were replaced.
      reasons: why records were unusable, and how many for each reason.
      examples: names of the first unusable records.
    """

    written: int = 0
    empty: int = 0
    other_split: int = 0
    unusable: int = 0
    mended: int = 0
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: list[str] = dataclasses.field(default_factory=list)

    @property
    def read(self) -> int:
        return self.written + self.empty + self.other_split + self.unusable

    def add(self, fate: Fate, document: Document) -> None:
        """Counts one document."""
        setattr(self, fate, getattr(self, fate) + 1)
        self.mended += fate == "written" and document.is_mended
        if document.flaw:
            self.reasons[document.flaw] = self.reasons.get(document.flaw, 0) + 1
            if len(self.examples) < _MOST_EXAMPLES:
                self.examples.append(f"{document.name()} {document.flaw}")

    def add_all(self, other: "Counts") -> None:
        """Adds the counts of documents that come after these."""
        for name in (*get_args(Fate), "mended"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, count in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count
        self.examples = (self.examples + other.examples)[:_MOST_EXAMPLES]

    def left_out(self) -> str:
        """Returns a sentence on what is missing or changed; empty where nothing is."""
        names = {"empty": "empty", "other_split": "of the other split", "unusable": "unusable"}
        kinds = [f"{n} {name}" for fate, name in names.items() if (n := getattr(self, fate))]
        notes = [f"left out: {', '.join(kinds)}"] if kinds else []
        if self.examples:
            notes[0] += f" ({self.examples[0]})"
        if self.mended:
            notes.append(f"halves of surrogate pairs became ? in {self.mended}")
        return "; ".join(notes)


def fate_of(document: Document) -> Fate:
    """Returns what becomes of a document where none are held out."""
    if document.text is None:
        return "unusable"
    return "written" if document.text.strip() else "empty"
