"""Defines a Qwen3 decoder whose layers may each have another mixer."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hydrahead_jax.cache.layered import Cache
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.mixers import HeadEdit, Stream, make_mixer
from hydrahead_jax.mixers.init import fan_in, ones
from hydrahead_jax.models.embedding import embed_on
from hydrahead_jax.models.layers import Remat, run_modules
from hydrahead_jax.models.stream import extend_cache, make_stream
from hydrahead_jax.ops.norms import rms_norm
from hydrahead_jax.sharding import Layout


class Taps(NamedTuple):
    """Shows what one layer read, wrote and measured; unused taps cost nothing under jit."""

    residual_BTD: jax.Array
    mixer_in_BTD: jax.Array
    heads_BTNH: jax.Array
    mixer_out_BTD: jax.Array
    statistics: dict


class Output(NamedTuple):
    """Carries the results; `Decoder.logits` takes the normalised hidden_BTD, or a part of it."""

    hidden_BTD: jax.Array
    cache: Cache | None
    taps: list


class MLP(nnx.Module):
    """Computes the SwiGLU MLP."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, F = config.embed, config.mlp
        self.w_gate_DF = fan_in(rngs, (D, F), D)
        self.w_up_DF = fan_in(rngs, (D, F), D)
        self.w_down_FD = fan_in(rngs, (F, D), F)

    def __call__(self, x_BTD):
        gate_BTF = jax.nn.silu(jnp.einsum("BTD,DF->BTF", x_BTD, self.w_gate_DF[...]))
        up_BTF = jnp.einsum("BTD,DF->BTF", x_BTD, self.w_up_DF[...])
        return jnp.einsum("BTF,FD->BTD", gate_BTF * up_BTF, self.w_down_FD[...])


class Block(nnx.Module):
    """Applies norm, mixer, residual, then norm, MLP, residual."""

    def __init__(self, config: ModelConfig, layer: int, *, rngs: nnx.Rngs):
        self.eps = config.rms_eps
        self.mixer_norm_D = ones((config.embed,))
        self.mixer = make_mixer(config, layer, rngs=rngs)
        self.mlp_norm_D = ones((config.embed,))
        self.mlp = MLP(config, rngs=rngs)

    def mixer_input(self, x_BTD):
        return rms_norm(x_BTD, self.mixer_norm_D[...], eps=self.eps)

    def add_mlp(self, x_BTD):
        return x_BTD + self.mlp(rms_norm(x_BTD, self.mlp_norm_D[...], eps=self.eps))

    def __call__(self, x_BTD, stream: Stream, cache, edit: HeadEdit | None):
        normed_BTD = self.mixer_input(x_BTD)
        out_BTD, heads_BTNH, cache, statistics = self.mixer(normed_BTD, stream, cache, edit)
        taps = Taps(x_BTD, normed_BTD, heads_BTNH, out_BTD, statistics)
        x_BTD = self.add_mlp(x_BTD + out_BTD)
        if stream.layout is not None:
            x_BTD = stream.layout.constrain(x_BTD, "BTD")
        return x_BTD, cache, taps


def _everything(taps: Taps) -> Taps:
    return taps


@functools.cache
def _layer_call(tap: Callable[[Taps], Any]) -> Callable:
    """Returns one object for each `tap`, so that layers of equal structure are traced once."""

    def call(block: Block, x_BTD, inputs, stream: Stream):
        x_BTD, cache, taps = block(x_BTD, stream, *inputs)
        return x_BTD, (cache, tap(taps))

    return call


class Decoder(nnx.Module):
    """Runs a decoder with parameters only; everything that changes is an argument and a result."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.w_embed_VD = fan_in(rngs, (config.vocab, config.embed), config.embed)
        self.layers = nnx.List([Block(config, i, rngs=rngs) for i in range(config.layers)])
        self.final_norm_D = ones((config.embed,))
        if not config.tied_embeddings:
            self.w_unembed_DV = fan_in(rngs, (config.embed, config.vocab), config.embed)

    def __call__(
        self,
        tokens_BT,
        *,
        segment_ids_BT=None,
        positions_BT=None,
        cache: Cache | None = None,
        edits: dict[int, HeadEdit] | None = None,
        training: bool = False,
        starts_BT=None,
        layout: Layout | None = None,
        remat: Remat = "none",
        scan: bool = False,
        tap: Callable[[Taps], Any] = _everything,
    ) -> Output:
        """Runs T tokens, after those in the cache if there is one.

        Args:
          tokens_BT: int32.
          segment_ids_BT: packed documents; 0 is padding; all ones if None. With a cache, padding
            stands to the left and every row is one document.
          positions_BT: position in the document; counted from the segments, and after the cache,
            if None.
          cache: from `init_cache`, or from an earlier call; it must have room for T more tokens.
          edits: layer -> head outputs to replace.
          training: the log scale of the queries may be for inference only.
          starts_BT: first tokens of all documents but a row's first; needed with a layout.
          layout: devices that share the rows, tokens and heads, in place of a cache. Tokens stand
            in its order, so positions must be given.
          remat: what is saved for the backward pass; see `run_modules`.
          scan: layers of equal structure that follow one another are compiled once; without a
            cache.
          tap: which part of a layer's taps `Output.taps` has; all of it by default.
        """
        stream = make_stream(
            tokens_BT.shape,
            segment_ids_BT,
            positions_BT,
            cache,
            training,
            starts_BT=starts_BT,
            layout=layout,
        )
        x_BTD = self.embed(tokens_BT, layout)
        layers = range(len(self.layers))
        inputs = [(cache and cache.layers[i], (edits or {}).get(i)) for i in layers]
        run = functools.partial(run_modules, layout=layout, remat=remat, scan=scan)
        x_BTD, results = run(_layer_call(tap), self.layers, x_BTD, inputs, stream)
        layer_caches, taps = zip(*results, strict=True)
        if cache is not None:
            cache = extend_cache(cache, list(layer_caches), stream)
        return Output(self.final_norm(x_BTD), cache, list(taps))

    def embed(self, tokens_BT, layout: Layout | None = None):
        if layout is not None:
            return embed_on(layout, self.w_embed_VD[...], tokens_BT)
        return self.w_embed_VD[...][tokens_BT]

    def final_norm(self, x_BTD):
        return rms_norm(x_BTD, self.final_norm_D[...], eps=self.config.rms_eps)

    def logits(self, hidden_BTD):
        """Returns float32 logits over the vocabulary."""
        return jnp.einsum(
            "...D,DV->...V", hidden_BTD, self.unembedding_DV(), preferred_element_type=jnp.float32
        )

    def unembedding_DV(self):
        return self.w_embed_VD[...].T if self.config.tied_embeddings else self.w_unembed_DV[...]
