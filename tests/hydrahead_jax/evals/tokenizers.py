"""Makes tokenizers of several kinds, without needle symbols."""

import functools

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

_TEXT = [
    "One of the special magic numbers for dusty-harbor is hidden within the following text.",
    "Make sure to memorize it, I will quiz you about the magic uuid mentioned in the text.",
    *(f"{n} {n * 7} {n * 331 % 10007}" for n in range(400)),
]
_ONE_DIGIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@functools.cache
def merging() -> Tokenizer:
    """Returns byte-level BPE that merges digits, so that numbers differ in their token counts."""
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


@functools.cache
def digit_splitting() -> Tokenizer:
    """Returns byte-level BPE that splits as Qwen3's: each digit, and the space before a number."""
    split = pre_tokenizers.Split(Regex(_ONE_DIGIT), "isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _byte_level(pre_tokenizers.Sequence([split, in_bytes]))


@functools.cache
def characters() -> Tokenizer:
    """Returns a word-level tokenizer of single characters; some characters are unknown to it."""
    names = ["<unk>", *map(chr, range(32, 127)), "\n"]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


@functools.cache
def words() -> Tokenizer:
    """Returns a word-level tokenizer that knows no number."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "magic": 1, "is": 2, ":": 3}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def _byte_level(pre_tokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_TEXT, trainer)
    return tokenizer
