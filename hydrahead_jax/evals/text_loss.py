"""Measures next-token loss on text, overall and by position."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hydrahead_jax.cache import KVFormats, LayerFormats, init_cache, layer_formats
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.models import merge
from hydrahead_jax.token_ids import check_token_ids

_LOGITS_AT_ONCE = 128


class TextLoss(NamedTuple):
    """Says what a model loses per token of a text, overall and by position.

    Attributes:
      mean: nats per token.
      by_position: the same for tokens at positions "first-last", in buckets that double.
    """

    mean: float
    by_position: dict[str, float]


def text_loss(
    config: ModelConfig,
    params: dict,
    text_tokens: np.ndarray,
    *,
    length: int,
    windows: int = 32,
    batch: int = 16,
    first_bucket: int = 32,
    kv_cache: KVFormats = None,
) -> TextLoss:
    """Returns the mean loss over `windows` stretches of `length` tokens, spread evenly over text.

    With a `kv_cache`, see `generate`, tokens are read one at a time as in decoding, so that each
    sees the keys and values that the cache stores.

    Raises:
      UserError: the text is shorter than one window, a window has no token to predict, a token is
        unknown to the model, or the model cannot have that KV cache.
    """
    check_text(text_tokens, length, config.vocab)
    kv_formats = layer_formats(config, kv_cache)
    tokens_XT = spread_windows(text_tokens, windows, length)
    batch = min(batch, windows)
    rows = [np.arange(start, start + batch) % windows for start in range(0, windows, batch)]
    losses = [_token_losses(config, params, tokens_XT[row], kv_formats) for row in rows]
    loss_XT = np.concatenate(losses)[:windows].astype(np.float64)
    return TextLoss(float(loss_XT.mean()), _by_position(loss_XT.mean(axis=0), first_bucket))


def spread_windows(text_tokens: np.ndarray, windows: int, length: int) -> np.ndarray:
    """Returns stretches of the text, int32 [windows, length], spread evenly over it."""
    starts = np.linspace(0, len(text_tokens) - length, windows).astype(int)
    return np.stack([np.asarray(text_tokens[s : s + length], np.int32) for s in starts])


def check_text(text_tokens: np.ndarray, length: int, vocab: int) -> None:
    """Raises UserError where text makes no window of `length` tokens that the model knows."""
    check_token_ids(text_tokens, vocab, "the text")
    if length < 2:
        raise UserError(f"text windows of {length} tokens predict nothing; give 2 or more")
    if len(text_tokens) < length:
        raise UserError(
            f"the text has {len(text_tokens)} tokens and a window needs {length}; "
            f"give more text or shorter windows"
        )


@functools.partial(jax.jit, static_argnames=("config", "kv_formats"))
def _token_losses(config: ModelConfig, params: dict, tokens_BT, kv_formats: LayerFormats):
    """Returns the losses [B, T - 1].

    Because V is large, it computes the logits of a few positions at a time.
    """
    model = merge(config, params)
    hidden_BTD = _hidden(config, model, tokens_BT[:, :-1], kv_formats)
    targets_BT = tokens_BT[:, 1:]
    B, T = targets_BT.shape
    width = min(_LOGITS_AT_ONCE, T)
    padded = -(-T // width) * width
    hidden_BTD = jnp.pad(hidden_BTD, ((0, 0), (0, padded - T), (0, 0)))
    targets_BT = jnp.pad(targets_BT, ((0, 0), (0, padded - T)))

    def losses(inputs):
        hidden_BCD, targets_BC = inputs
        log_p_BCV = jax.nn.log_softmax(model.logits(hidden_BCD))
        return -jnp.take_along_axis(log_p_BCV, targets_BC[..., None], axis=-1)[..., 0]

    split = lambda x: jnp.moveaxis(x.reshape(B, padded // width, width, *x.shape[2:]), 1, 0)
    loss_ZBC = jax.lax.map(losses, (split(hidden_BTD), split(targets_BT)))
    return jnp.moveaxis(loss_ZBC, 0, 1).reshape(B, padded)[:, :T]


def _hidden(config: ModelConfig, model, tokens_BT, kv_formats: LayerFormats):
    """Returns the hidden states [B, T, D], in one pass unless a cache is packed."""
    if not any(kv_formats):
        return model(tokens_BT).hidden_BTD

    def step(cache, token_B):
        output = model(token_B[:, None], cache=cache)
        return output.cache, output.hidden_BTD[:, 0]

    dtype = model.w_embed_VD[...].dtype
    cache = init_cache(config, *tokens_BT.shape, dtype, kv_formats)
    _, hidden_TBD = jax.lax.scan(step, cache, tokens_BT.T)
    return jnp.moveaxis(hidden_TBD, 0, 1)


def _by_position(loss_T: np.ndarray, first_bucket: int) -> dict[str, float]:
    """Averages losses by the position of the token that is read; the first bucket starts at 0."""
    buckets, start, end = {}, 0, first_bucket
    while start < len(loss_T):
        end = min(end, len(loss_T))
        buckets[f"{start}-{end - 1}"] = float(loss_T[start:end].mean())
        start, end = end, 2 * end
    return buckets
