"""Makes counterfactual pairs of general ability, from lines that a user wrote."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from hydrahead_jax.errors import UserError
from hydrahead_jax.local_path import local_path
from hydrahead_jax.selection.probes.pairs import PairRow, ProbePairs, stack_pairs
from hydrahead_jax.selection.probes.retrieval import SubProbe
from hydrahead_jax.selection.probes.token_rows import (
    UnequalTokens,
    answer_tokens,
    token_ids,
    token_row,
)
from hydrahead_jax.text_files.names import shown
from hydrahead_jax.text_files.parse import Unusable, parse_json
from hydrahead_jax.text_files.records import json_records

_REQUIRED, _OPTIONAL = ("prompt", "answer", "distractor"), ("corrupt_prompt",)
_FAULTS_NAMED = 8
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


class Cloze(NamedTuple):
    """Says one question of a file, with its answer and its distractor.

    Answer and distractor follow the prompt unchanged, leading space included.
    """

    place: str
    prompt: str
    answer: str
    distractor: str
    corrupt_prompt: str | None = None


def general_probes(
    paths: Sequence[Path], tokenizer: Tokenizer
) -> tuple[tuple[SubProbe, ProbePairs], ...]:
    """Returns a sub-probe of capability "general" and its pairs for each JSON-lines file.

    The sub-probe is named as the file; each line makes a pair. A line has "prompt", "answer",
    "distractor", and may have "corrupt_prompt", which is x'. Without it x' is the prompt with
    answer and distractor swapped, where it names the answer; else the prompt of another line that
    has another answer and as many tokens.

    Raises:
      UserError: a file cannot be read, two have one name, or a line makes no pair; says which
        line and what to change.
    """
    paths = [local_path(path) for path in paths]
    names = [re.sub(r"[^\w-]+", "_", path.stem) for path in paths]
    for path, name in zip(paths, names, strict=True):
        if names.count(name) > 1 or name.startswith("niah_"):
            raise UserError(f"{path}: another probe is named {name}; rename the file")
    return tuple(
        (
            SubProbe(name=name, capability="general", counterfactual="prompt"),
            cloze_pairs(path, tokenizer),
        )
        for path, name in zip(paths, names, strict=True)
    )


def cloze_pairs(path: Path, tokenizer: Tokenizer) -> ProbePairs:
    """Returns the pairs of one file; raises like `general_probes`."""
    clozes = read_clozes(path)
    prompts = [token_ids(tokenizer, cloze.prompt) for cloze in clozes]
    rows, faults = [], []
    for cloze, ids in zip(clozes, prompts, strict=True):
        others = [o for o, other in zip(clozes, prompts, strict=True) if len(other) == len(ids)]
        try:
            rows.append(_row(cloze, ids, others, tokenizer))
        except UnequalTokens as error:
            faults.append(f"{cloze.place}: {error}")
    if faults:
        more = ["and more"] if len(faults) > _FAULTS_NAMED else []
        raise UserError(
            f"{path}: " + "; ".join([*faults[:_FAULTS_NAMED], *more]) + "; correct these"
        )
    return stack_pairs(rows)


def read_clozes(path: Path) -> list[Cloze]:
    """Reads the records of a file, blank lines left out.

    Raises:
      UserError: the file cannot be read or is empty, or a line is no cloze; says which.
    """
    clozes = [_cloze(path, place, raw) for raw, place, _ in json_records(path)]
    if not clozes:
        raise UserError(f"{path} is empty; it needs a JSON object a line, with {_fields()}")
    return clozes


def _cloze(path: Path, place: str, raw: bytes | None) -> Cloze:
    where = f"{shown(path)}, {place}"
    if raw is None:
        raise UserError(f"{where} is too long; shorten it")
    try:
        found = parse_json(raw)
    except Unusable as why:
        raise UserError(f"{where} {why}; correct it") from why
    if not isinstance(found, dict):
        raise UserError(f"{where} must be a JSON object with {_fields()}")
    for name in _REQUIRED:
        if name not in found:
            raise UserError(f"{where} has no {name!r}; it needs {_fields()}")
    for name, value in found.items():
        if name not in _REQUIRED + _OPTIONAL:
            raise UserError(
                f"{where} has an unknown field {ascii(name)[:80]}; use only {_fields()}"
            )
        if not isinstance(value, str) or not value.strip() or _NO_TEXT.search(value):
            raise UserError(f"{where}: {name!r} is {ascii(value)[:80]} and must be text")
    return Cloze(place, **found)


def _fields() -> str:
    optional = ", ".join(f'"{name}"' for name in _OPTIONAL)
    return ", ".join(f'"{name}"' for name in _REQUIRED) + f" and, if you like, {optional}"


def _row(
    cloze: Cloze, prompt_ids: list[int], others: Sequence[Cloze], tokenizer: Tokenizer
) -> PairRow:
    if re.fullmatch(r"[A-Za-z0-9]{2}", cloze.prompt[-1] + cloze.answer[0]):
        raise UnequalTokens(
            "prompt and answer run together; begin answer and distractor with a space"
        )
    answer_tokens(tokenizer, cloze.prompt, prompt_ids, cloze.answer, cloze.distractor)
    for corrupt in _corrupt_prompts(cloze, others):
        try:
            return token_row(tokenizer, cloze.prompt, corrupt, cloze.answer, cloze.distractor)
        except UnequalTokens:
            if corrupt == cloze.corrupt_prompt:
                raise
    raise UnequalTokens(
        'no other prompt fits it; add a "corrupt_prompt" of as many tokens, which the distractor '
        "is the answer to"
    )


def _corrupt_prompts(cloze: Cloze, others: Sequence[Cloze]) -> Iterator[str]:
    if cloze.corrupt_prompt is not None:
        yield cloze.corrupt_prompt
        return
    swap = {cloze.answer.strip(): cloze.distractor.strip()}
    if re.search(_any_of(swap), cloze.prompt):
        swap |= {new: old for old, new in swap.items()}
        yield re.sub(_any_of(swap), lambda found: swap[found[0]], cloze.prompt)
    others = [other for other in others if other.answer != cloze.answer]
    yield from (o.prompt for o in sorted(others, key=lambda o: o.answer != cloze.distractor))


def _any_of(names) -> str:
    """Makes a pattern of complete words."""
    longest_first = sorted(map(re.escape, names), key=len, reverse=True)
    return rf"(?<!\w)(?:{'|'.join(longest_first)})(?!\w)"
