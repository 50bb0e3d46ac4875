"""Tells paths of this machine from addresses such as gs://bucket/run."""

import os
import re
from pathlib import Path

from hydrahead_jax.errors import UserError
from hydrahead_jax.text_files.names import shown

# Two letters or more, so that C:/ is a path. pathlib leaves one of the two slashes.
_ADDRESS = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]+):/+")
_SHOWN = 120


def local_path(path: str | os.PathLike) -> Path:
    """Returns `path` as a Path.

    Raises:
      UserError: it is an address of a cloud store, the Hugging Face Hub or the web.
    """
    text = os.fspath(path)
    found = _ADDRESS.match(text)
    if found is None:
        return Path(text)
    address = shown(f"{found[1]}://{text[found.end() :]}", _SHOWN)
    raise UserError(
        f"{address} is an address, and only files and folders of this "
        "machine can be read or written; mount it or copy it, and give the path here"
    )
