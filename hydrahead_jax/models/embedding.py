"""Looks up token embeddings in a table that is sharded over a mesh."""

import jax
import jax.numpy as jnp

from hydrahead_jax.sharding import Layout


def embed_on(layout: Layout, w_embed_VD, tokens_BT) -> jax.Array:
    """Returns `w_embed_VD[tokens_BT]` without gathering the table anywhere.

    Every rank looks up its part of the vocabulary and of the embedding for the rows of all its
    fsdp peers; afterwards the ranks exchange the parts.
    """
    table = layout.param_spec("w_embed_VD", w_embed_VD.shape)
    vocab_axis, embed_axis = table

    def local(w_VD, tokens_BT):
        if embed_axis is not None:
            tokens_BT = jax.lax.all_gather(tokens_BT, embed_axis, axis=0, tiled=True)
        x_BTD = _own_part(w_VD, tokens_BT, vocab_axis)
        if embed_axis is not None:
            x_BTD = jax.lax.all_to_all(x_BTD, embed_axis, 0, 2, tiled=True)
        return x_BTD

    mapped = jax.shard_map(
        local, mesh=layout.mesh, in_specs=(table, layout.spec("BT")), out_specs=layout.spec("BTD")
    )
    return mapped(w_embed_VD, tokens_BT)


def _own_part(w_VD, tokens_BT, vocab_axis: str | None):
    if vocab_axis is None:
        return w_VD[tokens_BT]
    own_BT = tokens_BT - jax.lax.axis_index(vocab_axis) * w_VD.shape[0]
    is_own_BT = (own_BT >= 0) & (own_BT < w_VD.shape[0])
    rows_BTD = w_VD[jnp.where(is_own_BT, own_BT, 0)]
    return jax.lax.psum(jnp.where(is_own_BT[..., None], rows_BTD, 0), vocab_axis)
