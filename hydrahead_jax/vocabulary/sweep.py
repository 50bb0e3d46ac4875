"""Computes the logits of all tokens over the complete vocabulary in tiles, used and dropped.

For the gradient a second pass computes them again. The vocabulary is the outer loop: the gradient
of a chunk of the unembedding is complete when the chunk is left, so it is summed in float32 and
stored once. On a mesh each rank has its tokens and its part of the vocabulary; a chunk is gathered
along the embedding when its turn comes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hydrahead_jax.sharding import Layout
from hydrahead_jax.vocabulary.tiles import from_tiles, in_tiles
from hydrahead_jax.vocabulary.unembedding import Place, Span, Unembedding, span, span_width


class TokenLoss(NamedTuple):
    """Says what is computed of the logits; every array of it begins with the tokens.

    Attributes:
      start: (tokens, dtype) -> running values before any logit.
      update: (running, tokens, logits of each model, span) -> running.
      merge: (running, mesh axis) -> running, over ranks with other parts of the vocabulary.
      finish: (running, tokens) -> (result, what the gradient needs of it).
      gradient: (tokens, what the gradient needs, gradient of the result, logits, span) -> gradient
        of the last model's logits; None for a result without gradient.
    """

    start: Callable
    update: Callable
    merge: Callable
    finish: Callable
    gradient: Callable | None = None


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Says all that is static of a sweep; `places` has one entry per model's unembedding."""

    loss: TokenLoss
    places: tuple[Place, ...]
    at_once: int
    layout: Layout | None

    def mapped(self, function: Callable, arguments: tuple, results: tuple) -> Callable:
        """Runs `function` on this rank's part.

        A dimension string stands for each group of arrays.
        """
        if self.layout is None:
            return function
        spec = lambda x: self.layout.spec(x) if isinstance(x, str) else x
        return jax.shard_map(
            function,
            mesh=self.layout.mesh,
            in_specs=tuple(map(spec, arguments)),
            out_specs=tuple(map(spec, results)),
            check_vma=False,
        )


def sweep(
    loss: TokenLoss,
    models: tuple[tuple[jax.Array, Unembedding], ...],
    tokens: Any,
    *,
    at_once: int,
    layout: Layout | None = None,
):
    """Returns the result of `loss` for every token, differentiable in the last model.

    Args:
      loss: what to compute.
      models: final hidden states [..., D] and unembedding of each, over one vocabulary.
      tokens: pytree of arrays [..., ...] that the loss reads.
      at_once: entries of the vocabulary whose logits exist at one time, for 2048 tokens.
      layout: how hidden states [B, T, D] and tokens [B, T, ...] lie on devices.
    """
    places = tuple(unembedding.place(layout) for _, unembedding in models)
    hiddens = tuple(hidden for hidden, _ in models)
    weights = tuple(unembedding.weight for _, unembedding in models)
    return _sweep(_Plan(loss, places, at_once, layout), hiddens, weights, tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sweep(plan: _Plan, hiddens, weights, tokens):
    return _forward(plan, hiddens, weights, tokens)[0]


def _forward(plan: _Plan, hiddens, weights, tokens):
    def local(hiddens, weights, tokens):
        leading = hiddens[0].shape[:-1]
        tiles = in_tiles((hiddens, tokens), leading)

        def add_span(running, index):
            part, chunks = _span(plan, weights, index)

            def add_tile(_, tile):
                (hiddens, tokens), running = tile
                logits = _logits(plan, hiddens, chunks, part)
                return None, plan.loss.update(running, tokens, logits, part)

            return jax.lax.scan(add_tile, None, (tiles, running))[1], None

        wide = jnp.promote_types(hiddens[0].dtype, jnp.float32)
        running = jax.vmap(lambda tokens: plan.loss.start(tokens, wide))(tiles[1])
        running, _ = jax.lax.scan(add_span, running, jnp.arange(_spans(plan, weights)[0]))
        if plan.places[0].vocabulary is not None:
            running = plan.loss.merge(running, plan.places[0].vocabulary)
        return from_tiles(jax.vmap(plan.loss.finish)(running, tiles[1]), leading)

    specs = tuple(place.spec for place in plan.places)
    result, kept = plan.mapped(local, ("BTD", specs, "BT"), ("BT", "BT"))(hiddens, weights, tokens)
    return result, (hiddens, weights, tokens, kept)


def _backward(plan: _Plan, saved, d_result):
    place = plan.places[-1]
    d_result = jax.tree.map(_number, d_result)

    def local(hiddens, weights, tokens, kept, d_result):
        leading = hiddens[-1].shape[:-1]
        tiles = in_tiles((hiddens, (tokens, kept, d_result)), leading)
        wide = jnp.promote_types(hiddens[-1].dtype, jnp.float32)
        d_hidden_ZXD = jnp.zeros(tiles[0][-1].shape, wide)

        def add_span(sums, index):
            d_hidden_ZXD, d_weight = sums
            part, chunks = _span(plan, weights, index)

            def add_tile(z, sums):
                d_hidden_ZXD, d_chunk = sums
                hiddens, (tokens, kept, d_result) = jax.tree.map(lambda x: x[z], tiles)
                logits = _logits(plan, hiddens, chunks, part)
                d_logits_XC = plan.loss.gradient(tokens, kept, d_result, logits, part)
                d_logits_XC = d_logits_XC.astype(hiddens[-1].dtype)
                d_hidden_XD, d_part = _products(place, d_logits_XC, hiddens[-1], chunks[-1], wide)
                return d_hidden_ZXD.at[z].add(d_hidden_XD), d_chunk + d_part

            start = (d_hidden_ZXD, jnp.zeros(chunks[-1].shape, wide))
            d_hidden_ZXD, d_chunk = jax.lax.fori_loop(0, len(d_hidden_ZXD), add_tile, start)
            return (d_hidden_ZXD, part.add(d_weight, _over_rows(place, d_chunk, plan), place)), None

        start = (d_hidden_ZXD, jnp.zeros_like(weights[-1]))
        sums, _ = jax.lax.scan(add_span, start, jnp.arange(_spans(plan, weights)[0]))
        d_hidden_ZXD, d_weight = sums
        if place.vocabulary is not None:
            d_hidden_ZXD = jax.lax.psum(d_hidden_ZXD, place.vocabulary)
        d_hidden = from_tiles(d_hidden_ZXD, leading)
        return d_hidden.astype(hiddens[-1].dtype), d_weight

    others = (None,) * (len(plan.places) - 1)
    specs = tuple(place.spec for place in plan.places)
    arguments = ("BTD", specs, "BT", "BT", "BT")
    d_hidden, d_weight = plan.mapped(local, arguments, ("BTD", place.spec))(*saved, d_result)
    return (*others, d_hidden), (*others, d_weight), None


_sweep.defvjp(_forward, _backward)


def _number(gradient):
    """Replaces float0 cotangents (of booleans) by zeros, because shard_map cannot carry float0."""
    if gradient.dtype == jax.dtypes.float0:
        return jnp.zeros(gradient.shape)
    return gradient


def _products(place: Place, d_logits_XC, hidden_XD, chunk, wide):
    """Returns the gradients of the hidden states and of the chunk."""
    chunk_dims, weight_dims = ("CD", "CD") if place.vocabulary_axis == 0 else ("DC", "DC")
    einsum = functools.partial(jnp.einsum, preferred_element_type=wide)
    d_hidden_XD = einsum(f"XC,{chunk_dims}->XD", d_logits_XC, chunk)
    return d_hidden_XD, einsum(f"XC,XD->{weight_dims}", d_logits_XC, hidden_XD)


def _over_rows(place: Place, d_chunk, plan: _Plan):
    """Sums the gradient of a chunk over the ranks that have other tokens.

    Each rank of a sharded embedding keeps its part.
    """
    if plan.layout is None:
        return d_chunk
    if place.embed is not None:
        embed_axis = 1 - place.vocabulary_axis
        d_chunk = jax.lax.psum_scatter(
            d_chunk, place.embed, scatter_dimension=embed_axis, tiled=True
        )
    rows = tuple(axis for axis in ("data", "fsdp", "context") if axis != place.embed)
    return jax.lax.psum(d_chunk, rows)


def _spans(plan: _Plan, weights) -> tuple[int, int, int]:
    """Returns (number of spans, their width, entries on this rank)."""
    entries = weights[0].shape[plan.places[0].vocabulary_axis]
    return (*span_width(entries, plan.at_once), entries)


def _span(plan: _Plan, weights, index) -> tuple[Span, tuple]:
    _, width, entries = _spans(plan, weights)
    part = span(index, entries, width, plan.places[0])
    pairs = zip(weights, plan.places, strict=True)
    return part, tuple(part.of(weight, place) for weight, place in pairs)


def _logits(plan: _Plan, hiddens, chunks, part: Span):
    parts = zip(plan.places, hiddens, chunks, strict=True)
    return tuple(place.logits(hidden_XD, chunk, part.is_new_C) for place, hidden_XD, chunk in parts)
