"""Makes a small byte-level BPE tokenizer with needle symbols, and loads any tokenizer.json."""

import hashlib
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import dumps, read_json, write_json

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(documents: list[str], *, vocab: int, keys: int, values: int) -> Tokenizer:
    """Trains byte-level BPE on `documents`; `vocab` counts the special symbols too."""
    symbols = [f"<key_{i:02d}>" for i in range(keys)] + [f"<val_{i:02d}>" for i in range(values)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT, *symbols],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "padding_side": "left",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)


def load_tokenizer(path: Path) -> Tokenizer:
    """Loads a tokenizer.json; the tokenizer neither cuts texts nor pads them.

    Raises:
      UserError: there is no such file, or it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"there is no tokenizer {path}; check the path")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower exception
        raise UserError(f"{path} is not a tokenizer: {error}; copy or download it again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def added_ids(path: Path) -> dict[str, int]:
    """Returns the ids that a tokenizer.json gives to its added tokens.

    The library gives other ids where the file's ids leave a gap.
    """
    tokens = read_json(path).get("added_tokens") or []
    return {token["content"]: token["id"] for token in tokens}


def end_of_text(tokenizer: Tokenizer) -> int:
    """Returns the token that stands between documents.

    Raises:
      UserError: the tokenizer has none.
    """
    token = tokenizer.token_to_id(END_OF_TEXT)
    if token is None:
        raise UserError(
            f"the tokenizer has no {END_OF_TEXT}, which stands between documents; use one that "
            "has this token"
        )
    return token


def vocabulary_checksum(tokenizer: Tokenizer) -> str:
    """Returns a checksum of tokens and their ids, however the tokenizer was saved."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(dumps(vocabulary).encode()).hexdigest()
