"""Opens files that may be compressed, as their endings say."""

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from hydrahead_jax.errors import UserError
from hydrahead_jax.text_files.names import shown

_FIRST_BYTES = {
    ".gz": b"\x1f\x8b",
    ".bz2": b"BZh",
    ".xz": b"\xfd7zXZ\x00",
    ".zst": b"\x28\xb5\x2f\xfd",
}
_BZ2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")
COMPRESSED = tuple(_FIRST_BYTES)
_BUFFER = 2**20
_LARGEST_WINDOW = 2**27


def compression(name: str) -> str | None:
    """Returns the ending that says how a file is compressed, in lower case; None if it is not."""
    return next((ending for ending in COMPRESSED if name.lower().endswith(ending)), None)


@contextlib.contextmanager
def open_stream(path: Path) -> Iterator[tuple[io.BufferedIOBase, io.BufferedIOBase]]:
    """Opens a file to read what it holds: yields that, and the compressed file itself.

    All members, streams or frames of a compressed file are read, one after another.

    Raises:
      UserError: the file cannot be read, is damaged, or is compressed in another way than its
        ending says; also while it is read within the `with`.
    """
    try:
        with path.open("rb") as file:
            _check_first_bytes(path, file)
            with _decompressed(file, compression(path.name)) as stream:
                yield stream, file
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(
            f"cannot read {shown(path)}: {reason}; copy the file again, or leave it out"
        ) from error


def _check_first_bytes(path: Path, file: io.BufferedIOBase) -> None:
    ending = compression(path.name)
    head = file.read(14)
    file.seek(0)
    if not head and ending:
        raise OSError("it is empty, not even a compressed file of nothing")
    found = next((e for e, first in _FIRST_BYTES.items() if head.startswith(first)), None)
    is_text = found == ".bz2" and ending is None and head[4:10] not in _BZ2_BLOCKS
    if found not in (None, ending) and not is_text:
        raise OSError(f"it is compressed; let its name end in {found}")
    if ending not in (None, found, ".zst"):
        raise OSError(f"it is not compressed as {ending} says")
    if ending == ".zst" and _window(head) > _LARGEST_WINDOW:
        raise OSError("its zstd window is above 128 MiB; compress it again with --long=27 or less")


def _window(head: bytes) -> int:
    """Returns the bytes of history that the first zstd frame needs (RFC 8878, 3.1.1.1).

    Returns 0 where none is given.
    """
    if len(head) < 6 or not head.startswith(_FIRST_BYTES[".zst"]) or head[4] & 0x20:
        return 0
    base = 2 ** (10 + (head[5] >> 3))
    return base + base // 8 * (head[5] & 7)


def _decompressed(file: io.BufferedIOBase, ending: str | None) -> io.BufferedIOBase:
    if ending is None:
        return file
    if ending == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=file, mode="rb"), _BUFFER)
    if ending == ".zst":
        return _zstd(file)
    new = bz2.BZ2Decompressor if ending == ".bz2" else lzma.LZMADecompressor
    return io.BufferedReader(_Streams(file, new), _BUFFER)


def _zstd(file: io.BufferedIOBase) -> io.BufferedReader:
    try:
        import pyarrow
    except ImportError as error:
        raise UserError("files that end in .zst need pyarrow; install it") from error
    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file), "zstd")
    return io.BufferedReader(stream, _BUFFER)


class _Streams(io.RawIOBase):
    """Reads the streams of a bz2 or xz file.

    The library's own reader ignores what follows the first stream if it is damaged.
    """

    def __init__(self, file: io.BufferedIOBase, new: Callable[[], bz2.BZ2Decompressor]):
        self._file, self._new = file, new
        self._decompressor, self._is_between = new(), True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while True:
            raw = b""
            if self._decompressor.eof:
                raw = self._decompressor.unused_data
                self._decompressor, self._is_between = self._new(), True
            if not raw and (self._is_between or self._decompressor.needs_input):
                raw = self._file.read(_BUFFER)
                if not raw and self._is_between:
                    return 0
                if not raw:
                    raise EOFError("it ends before its compressed data do")
            if self._is_between:
                raw = raw.lstrip(b"\0")
                if not raw:
                    continue
                self._is_between = False
            data = self._decompressor.decompress(raw, len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
