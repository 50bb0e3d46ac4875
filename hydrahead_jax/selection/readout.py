"""How much a model prefers the answer over the distractor."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hydrahead_jax.models import Decoder

DECAY = 0.9


def readout_positions(length: int, answer_length: int) -> slice:
    """The positions that predict the answer, where it ends a document of `length` tokens."""
    return slice(length - answer_length - 1, length - 1)


def readout(
    answer_logits_BJ: Float[Array, "*B J"], distractor_logits_BJ: Float[Array, "*B J"]
) -> Float[Array, "*B"]:
    """Mean over answer tokens j of z_j[a+] - z_j[a-], weighted by 0.9^j (Eq 9,
    arXiv 2606.20097)."""
    weights_J = DECAY ** jnp.arange(answer_logits_BJ.shape[-1])
    difference_BJ = answer_logits_BJ - distractor_logits_BJ
    return jnp.sum(difference_BJ * weights_J, axis=-1) / jnp.sum(weights_J)


def readout_of_hidden(
    model: Decoder,
    hidden_BJD: Float[Array, "*S B J D"],
    answer_BJ: Int[Array, "B J"],
    distractor_BJ: Int[Array, "B J"],
) -> Float[Array, "*S B"]:
    """The readout from normalised hidden states; no logits but the two per position are made."""
    unembedding_DV = model.unembedding_DV()

    def logits(ids_BJ):
        return jnp.einsum(
            "...BJD,DBJ->...BJ",
            hidden_BJD,
            unembedding_DV[:, ids_BJ],
            preferred_element_type=jnp.float32,
        )

    return readout(logits(answer_BJ), logits(distractor_BJ))
