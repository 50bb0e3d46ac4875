"""Computes the loss of stage 1: the student's mixers learn to write what the teacher's wrote."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hydrahead_jax.models import Taps, merge, run_modules
from hydrahead_jax.models.stream import make_stream
from train.losses.shared import head_metrics, real_tokens, run_model


class AlignTargets(NamedTuple):
    """Holds what the teacher's mixer of each layer read and wrote: most of this stage's memory."""

    mixer_in: list[jax.Array]
    mixer_out: list[jax.Array]


def align_targets(stage, config, params, batch, layout) -> AlignTargets:
    taps = run_model(stage, merge(config, params), batch, layout, _mixer_ends).taps
    return AlignTargets(*map(list, zip(*taps, strict=True)))


def _mixer_ends(taps: Taps):
    return taps.mixer_in_BTD, taps.mixer_out_BTD


def align_loss(stage, config, params, batch, targets: AlignTargets, counts, layout):
    """Computes eq 15: each mixer gets the teacher's input, so layers are independent."""
    model = merge(config, params)
    stream = make_stream(
        batch.tokens_BT.shape,
        batch.segment_ids_BT,
        batch.positions_BT,
        None,
        True,
        starts_BT=batch.starts_BT,
        layout=layout,
    )
    real_BT = real_tokens(batch)
    _, results = run_modules(
        _mixer_error,
        [block.mixer for block in model.layers],
        None,
        list(zip(*targets, strict=True)),
        (stream, real_BT),
        layout=layout,
        remat=stage.remat,
        scan=stage.scan_layers,
    )
    errors, statistics = zip(*results, strict=True)
    tokens = jnp.sum(real_BT)
    metrics = {f"mse_layer_{index:02d}": (error, tokens) for index, error in enumerate(errors)}
    total = sum(errors) / len(errors)
    metrics = {"loss": (total, tokens), **metrics, **head_metrics(statistics)}
    return total / counts["tokens"], metrics


def _mixer_error(mixer, _, ends, shared):
    stream, real_BT = shared
    mixer_in_BTD, target_BTD = ends
    output = mixer(mixer_in_BTD, stream, None, None)
    return None, (_squared_error(output.out_BTD, target_BTD, real_BT), output.statistics)


@jax.checkpoint
def _squared_error(out_BTD, target_BTD, real_BT):
    """Sums squared errors; the backward pass recomputes them, so no layer saves them in float32."""
    wide = jnp.promote_types(out_BTD.dtype, jnp.float32)
    error_BTD = out_BTD.astype(wide) - target_BTD.astype(wide)
    return jnp.sum(jnp.mean(error_BTD**2, axis=-1) * real_BT)
