"""Computes losses over the vocabulary without an array of [tokens, vocabulary]."""

from hydrahead_jax.vocabulary.kept import Kept, KeptScores, kept_scores
from hydrahead_jax.vocabulary.pairs import PairScores, pair_scores
from hydrahead_jax.vocabulary.single import TokenScores, token_scores
from hydrahead_jax.vocabulary.top import top_tokens
from hydrahead_jax.vocabulary.unembedding import Unembedding

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
