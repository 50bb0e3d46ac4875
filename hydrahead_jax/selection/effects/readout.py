"""Measures how much a model prefers the answer over the distractor."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.ops.norms import rms_norm

DECAY = 0.9


def readout_positions(length: int, answer_length: int) -> slice:
    """Returns the positions that predict the answer.

    The answer's J places end a document of `length` tokens.
    """
    return slice(length - answer_length - 1, length - 1)


def readout(
    answer_logits_BJ: Float[Array, "*B J"],
    distractor_logits_BJ: Float[Array, "*B J"],
    answer_BJ: Int[Array, "*B J"],
) -> Float[Array, "*B"]:
    """Returns the mean over answer tokens j of z_j[a+] - z_j[a-], weighted by 0.9^j.

    This is Eq 9 (arXiv 2606.20097). Places where answer_BJ is negative are behind the answer and do
    not count.
    """
    weights_BJ = jnp.where(answer_BJ >= 0, DECAY ** jnp.arange(answer_BJ.shape[-1]), 0.0)
    difference_BJ = answer_logits_BJ - distractor_logits_BJ
    return jnp.sum(difference_BJ * weights_BJ, axis=-1) / jnp.sum(weights_BJ, axis=-1)


def readout_of_residual(
    config: ModelConfig,
    params: dict,
    x_BSJD: Float[Array, "B S J D"],
    answer_BJ: Int[Array, "B J"],
    distractor_BJ: Int[Array, "B J"],
) -> Float[Array, "B S"]:
    """Returns readouts of S residual streams per pair after the last layer, in float32.

    `params` needs the embedding, the final norm and the unembedding if there is one. Only two
    logits per position are computed.
    """
    hidden_BSJD = rms_norm(x_BSJD.astype(jnp.float32), params["final_norm_D"], eps=config.rms_eps)

    def logits(ids_BJ):
        ids_BJ = jnp.maximum(ids_BJ, 0)
        rows_BJD = (
            params["w_embed_VD"][ids_BJ]
            if config.tied_embeddings
            else jnp.moveaxis(params["w_unembed_DV"][:, ids_BJ], 0, -1)
        )
        return jnp.einsum("BSJD,BJD->BSJ", hidden_BSJD, rows_BJD.astype(jnp.float32))

    answer_BSJ = jnp.broadcast_to(answer_BJ[:, None], hidden_BSJD.shape[:-1])
    return readout(logits(answer_BJ), logits(distractor_BJ), answer_BSJ)
