"""Decodes bytes to text and JSON, by one set of rules for all files."""

import codecs
import json

BLANK = b" \t\r\n"


class Unusable(ValueError):
    """Raised for a record that holds no text; the message says why, without its subject."""


class NotJson(Unusable):
    """Raised for bytes that are not JSON."""


def decode(raw: bytes) -> str:
    """Decodes UTF-8; a byte order mark at the start is left out.

    Raises:
      Unusable: the bytes are not UTF-8.
    """
    try:
        return raw.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError:
        raise Unusable("is not UTF-8") from None


def parse_json(raw: bytes):
    """Parses JSON in UTF-8.

    Of equal keys the last one counts; NaN and Infinity are numbers. Integers of more digits than
    Python converts become floats.

    Raises:
      NotJson: the text is not JSON.
      Unusable: the bytes are not UTF-8, or the text is nested too deeply.
    """
    text = decode(raw)
    try:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise NotJson(f"is not JSON: {error}") from None
        except ValueError:
            return json.loads(text, parse_int=float)
    except RecursionError:
        raise Unusable("is nested too deeply") from None


def replace_surrogates(text: str) -> str:
    """Replaces halves of surrogate pairs, which JSON can hold and UTF-8 cannot, by "?"."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
