"""Losses over the vocabulary without an array of [tokens, vocabulary]."""

from train.vocabulary.kept import Kept, KeptScores, kept_scores
from train.vocabulary.pairs import PairScores, pair_scores
from train.vocabulary.single import TokenScores, token_scores
from train.vocabulary.top import top_tokens
from train.vocabulary.unembedding import Unembedding

__all__ = [
    "Kept",
    "KeptScores",
    "PairScores",
    "TokenScores",
    "Unembedding",
    "kept_scores",
    "pair_scores",
    "token_scores",
    "top_tokens",
]
