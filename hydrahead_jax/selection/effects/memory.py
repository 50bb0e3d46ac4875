"""Computes how many pairs, and patched streams of each, fit into a bound on memory."""

from typing import NamedTuple

from hydrahead_jax.config import ModelConfig

_MOST_PAIRS = 8
_FLOAT32 = 4


class AtOnce(NamedTuple):
    """Says how many pairs and heads one device computes at once.

    Attributes:
      heads: patched streams of a pair, each with a head of its own.
    """

    pairs: int
    heads: int


def trace_bytes(config: ModelConfig, length: int) -> int:
    """Returns the bytes of one pair's trace.

    They are 4 L T (2 D + N H) for both documents, and 8 L T K H for keys and values.
    """
    heads = config.query_heads * config.head_dim
    keys = 2 * config.kv_heads * config.head_dim
    return _FLOAT32 * config.layers * length * (2 * config.embed + heads + keys)


def stream_bytes(config: ModelConfig, length: int) -> int:
    """Returns the bytes of one patched stream.

    They are 4 T (2 D + 3 F + 2 N H): its residual, its MLP and its mixer.
    """
    heads = config.query_heads * config.head_dim
    return _FLOAT32 * length * (2 * config.embed + 3 * config.mlp + 2 * heads)


def receiver_bytes(config: ModelConfig, answer_length: int) -> int:
    """Returns the bytes of the direct effects of one pair: 4 L N J (2 D + 3 F)."""
    streams = config.layers * config.query_heads
    return _FLOAT32 * streams * answer_length * (2 * config.embed + 3 * config.mlp)


def at_once(
    config: ModelConfig, length: int, answer_length: int, memory: float, *, pairs: int | None = None
) -> AtOnce:
    """Returns as many pairs and heads as `memory` bytes beside the parameters allow.

    Half of it is for traces and half for streams; at least one pair and one head. `pairs` is used
    unchanged where it is given.
    """
    stream = stream_bytes(config, length)
    a_pair = max(trace_bytes(config, length), receiver_bytes(config, answer_length), 2 * stream)
    pairs = pairs or int(min(_MOST_PAIRS, max(1, memory / 2 // a_pair)))
    heads = int(min(config.query_heads, max(1, memory / 2 // (pairs * stream) - 1)))
    return AtOnce(pairs, heads)
