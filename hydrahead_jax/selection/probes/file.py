"""Stores the pairs of a selection as JSON lines, one per pair, to be read and loaded again."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import replacing
from hydrahead_jax.local_path import local_path
from hydrahead_jax.selection.probes.pairs import PairRow, ProbePairs, pair_rows, stack_pairs
from hydrahead_jax.selection.probes.retrieval import SubProbe
from hydrahead_jax.text_files.parse import parse_json
from hydrahead_jax.text_files.records import json_records


def save_probes(
    path: Path, probes: Sequence[SubProbe], pairs: Sequence[ProbePairs], tokenizer: Tokenizer
) -> None:
    """Writes every pair.

    A line holds the sub-probe's name, capability and counterfactual; the texts of prompt, answer
    and distractor; under "differences" what x and x' have in each stretch in which they differ;
    and the token ids, from which `load_probes` makes the same arrays: "answer_ids" and
    "distractor_ids", "prompt_ids", and for x' "corrupt_ids" at "corrupt_at" in the prompt.
    """
    with replacing(local_path(path)) as file:
        for probe, arrays in zip(probes, pairs, strict=True):
            for row in pair_rows(arrays):
                line = _line(probe, arrays.tokens_BT.shape[1], row, tokenizer)
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def load_probes(path: Path) -> tuple[tuple[SubProbe, ProbePairs], ...]:
    """Returns the sub-probes of a file, without their documents, and their pairs.

    Raises:
      UserError: the file cannot be read or is no file of probes; says which line.
    """
    path = local_path(path)
    rows: dict[SubProbe, list[PairRow]] = {}
    lengths: dict[SubProbe, int] = {}
    for raw, place, _ in json_records(path):
        try:
            probe, length, row = _parsed(parse_json(raw or b""))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(
                f"{path}, {place} holds no pair of a probe: {error}; correct or remove it"
            ) from error
        rows.setdefault(probe, []).append(row)
        lengths[probe] = length
    if not rows:
        raise UserError(f"{path} holds no probes; write the probes again")
    return tuple((probe, stack_pairs(rows[probe], lengths[probe])) for probe in rows)


def _line(probe: SubProbe, length: int, row: PairRow, tokenizer: Tokenizer) -> dict:
    text = lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False)
    at = [i for i, (a, b) in enumerate(zip(row.prompt, row.corrupt, strict=True)) if a != b]
    parts = np.split(np.array(at), np.flatnonzero(np.diff(at) > 1) + 1)
    stretches = [(int(part[0]), int(part[-1]) + 1) for part in parts]
    return {
        "probe": probe.name,
        "capability": probe.capability,
        "counterfactual": probe.counterfactual,
        "differences": [
            {"clean": text(row.prompt[start:end]), "corrupt": text(row.corrupt[start:end])}
            for start, end in stretches
        ],
        "answer": text(row.answer),
        "distractor": text(row.distractor),
        "prompt": text(row.prompt),
        "length": length,
        "answer_ids": row.answer,
        "distractor_ids": row.distractor,
        "corrupt_at": at,
        "corrupt_ids": [row.corrupt[i] for i in at],
        "prompt_ids": row.prompt,
    }


def _parsed(line: dict) -> tuple[SubProbe, int, PairRow]:
    names = ("capability", "counterfactual")
    probe = SubProbe(name=line["probe"], **{name: line[name] for name in names})
    corrupt = list(line["prompt_ids"])
    for place, token in zip(line["corrupt_at"], line["corrupt_ids"], strict=True):
        corrupt[place] = token
    row = PairRow(line["prompt_ids"], corrupt, line["answer_ids"], line["distractor_ids"])
    return probe, line["length"], row
