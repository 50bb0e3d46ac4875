"""Measures tokens per second, time spent waiting for data, and the utilisation of the devices."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.sharding import Layout
from pallas_kernels.hardware.chips import CHIPS, chip_of
from train.data.batches import Batch
from train.stage.flops import train_flops
from train.stage.stage import Stage

_count = jax.jit(jnp.count_nonzero)


class Throughput:
    """Measures the throughput between lines of the log."""

    def __init__(
        self,
        stage: Stage,
        config: ModelConfig,
        teacher_config: ModelConfig | None,
        layout: Layout | None,
    ):
        devices = 1 if layout is None else layout.mesh.size
        self._flops = train_flops(stage, config, teacher_config)
        peak = peak_flops(jax.devices()[0].device_kind)
        self._peak = None if peak is None else peak * devices
        self._padded = stage.data.batch * stage.data.length
        self._restart()

    def _restart(self) -> None:
        self._since, self._steps, self._waited, self._real = time.monotonic(), 0, 0.0, 0

    def step(self, real_tokens: float, waited: float) -> None:
        self._steps += 1
        self._real += real_tokens
        self._waited += waited

    def take(self) -> dict[str, float]:
        """Returns the figures of the steps since the last call.

        Returns:
          seconds_per_step; data_wait_seconds, of a step; tokens_per_second, padding left out, and
          padded_tokens_per_second; mfu where the device's peak is known.
        """
        seconds = time.monotonic() - self._since
        values = {
            "seconds_per_step": seconds / self._steps,
            "data_wait_seconds": self._waited / self._steps,
            "tokens_per_second": self._real / seconds,
            "padded_tokens_per_second": self._padded * self._steps / seconds,
        }
        if self._peak is not None:
            values["mfu"] = self._flops * self._steps / seconds / self._peak
        self._restart()
        return values


def peak_flops(device_kind: str) -> float | None:
    """Returns the bf16 FLOP per second of one JAX device; None where it is not known."""
    name = chip_of(device_kind)
    if name is None:
        return None
    chip = CHIPS[name]
    return chip.flops * chip.compiled_cores / chip.cores


def real_tokens(batch: Batch):
    """Counts the tokens of a complete batch that are not padding.

    On a mesh the count is an array, and nothing waits for it.
    """
    if isinstance(batch.segment_ids_BT, np.ndarray):
        return int(np.count_nonzero(batch.segment_ids_BT))
    return _count(batch.segment_ids_BT)
