"""Finds the tokens at which a reply ends."""

from pathlib import Path

from tokenizers import Tokenizer

from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import read_json

# Qwen3's end of a text and end of a turn; base models are not trained on the second.
_NAMES = ("<|endoftext|>", "<|im_end|>")
_FILES = (
    "generation_config.json",
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def stop_tokens(tokenizer: Tokenizer, folder: Path | None = None) -> tuple[int, ...]:
    """Returns the ids that end a text or a turn, in ascending order.

    Args:
      tokenizer: its tokens of Qwen3's names count.
      folder: folder of the model; what its JSON files call `eos_token_id` or `eos_token` counts
        too.

    Raises:
      UserError: one of the files cannot be read.
    """
    found = {tokenizer.token_to_id(name) for name in _NAMES}
    for path in [] if folder is None else [folder / name for name in _FILES]:
        fields = read_json(path) if path.is_file() else {}
        if not isinstance(fields, dict):
            raise UserError(f"{path} must hold a JSON object")
        ids = fields.get("eos_token_id")
        found |= {i for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int}
        token = fields.get("eos_token")
        text = token.get("content") if isinstance(token, dict) else token
        found.add(tokenizer.token_to_id(text) if isinstance(text, str) else None)
    return tuple(sorted(i for i in found - {None} if i >= 0 and tokenizer.id_to_token(i)))
