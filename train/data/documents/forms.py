"""Says which file endings hold documents, and in which form."""

from typing import Literal

from hydrahead_jax.text_files.streams import COMPRESSED, compression

Form = Literal["text", "jsonl", "json", "parquet", "records"]
_STREAMS: dict[str, Form] = {
    ".txt": "text",
    ".md": "text",
    ".py": "text",
    ".jsonl": "jsonl",
    ".json": "json",
}
_OTHERS: dict[str, Form] = {
    ".parquet": "parquet",
    ".arrayrecord": "records",
    ".array_record": "records",
}
ENDINGS = (
    f"{', '.join([*_STREAMS, *_OTHERS])}; the first {len(_STREAMS)} also with "
    f"{', '.join(COMPRESSED)}"
)


def form_of(name: str) -> Form | None:
    """Returns how a file of that name holds documents, None if it does not; ignores case."""
    name = name.lower()
    for ending, form in _OTHERS.items():
        if name.endswith(ending):
            return form
    name = name.removesuffix(compression(name) or "")
    return next((form for ending, form in _STREAMS.items() if name.endswith(ending)), None)
