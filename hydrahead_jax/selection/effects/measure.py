"""Measures effects of heads on the pairs of a sub-probe, batch by batch."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.selection.effects import attribution, direct, sender, total
from hydrahead_jax.selection.effects.batches import padded_batches
from hydrahead_jax.selection.effects.memory import AtOnce
from hydrahead_jax.selection.effects.sender import Receivers
from hydrahead_jax.selection.effects.store import Store
from hydrahead_jax.selection.effects.trace import Trace, trace_pairs
from hydrahead_jax.selection.probes.pairs import ProbePairs
from hydrahead_jax.selection.scores.ranking import Head

Tick = Callable[[int], None]
FRACTIONS = (0.0, 0.5, 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Measure:
    """Measures effects of a model's heads on pairs.

    Attributes:
      config: of the model.
      params: of the model, on the mesh if there is one.
      mesh: from `data_mesh`, or None for one device.
      at_once: pairs and heads on each device.
      store: store of finished batches.
    """

    config: ModelConfig
    params: dict
    mesh: Mesh | None
    at_once: AtOnce
    store: Store

    def receivers(self, name: str, pairs: ProbePairs, tick: Tick) -> dict[str, np.ndarray]:
        """Returns clean_B, corrupted_B and patched_BLN, the direct effects' readouts."""

        def compute(trace: Trace):
            patched = direct.patched_readouts(self.config, self.params, trace, self.mesh)
            return {
                "clean_B": trace.clean_B,
                "corrupted_B": trace.corrupted_B,
                "patched_BLN": patched,
            }

        return self._batches(name, pairs, compute, tick)

    def senders(
        self, name: str, pairs: ProbePairs, receivers: Receivers, heads: Sequence[Head], tick: Tick
    ) -> np.ndarray:
        """Returns readouts [B, L, N] of the senders in `heads`, nan for all others."""
        run = lambda trace, layer, some: sender.patched_readouts(
            self.config, self.params, trace, layer, some, receivers, self.mesh
        )
        return self._by_head(name, pairs, heads, run, tick)

    def totals(self, name: str, pairs: ProbePairs, heads: Sequence[Head], tick: Tick) -> np.ndarray:
        """Returns readouts [B, L, N] of `heads` patched with nothing frozen, nan for all others."""
        run = lambda trace, layer, some: total.patched_readouts(
            self.config, self.params, trace, layer, some, self.mesh
        )
        return self._by_head(name, pairs, heads, run, tick)

    def slopes(
        self, name: str, pairs: ProbePairs, receivers: Receivers, tick: Tick
    ) -> dict[str, np.ndarray]:
        """Returns first-order drops of the readout.

        Returns:
          direct_BLN, total_BLN, and sender_FBLN at each of FRACTIONS of the way from x to x'.
        """
        nobody = ((),) * self.config.layers

        def compute(trace: Trace):
            slope = lambda live, fraction=0.0: attribution.drops(
                self.config, self.params, trace, live, fraction=fraction, mesh=self.mesh
            )
            direct = [slope(nobody, fraction) for fraction in FRACTIONS]
            through = [slope(receivers, fraction) for fraction in FRACTIONS]
            sent = {
                f"sender_{i}_BLN": both - alone
                for i, (both, alone) in enumerate(zip(through, direct, strict=True))
            }
            return {"direct_BLN": direct[0], "total_BLN": slope("all"), **sent}

        found = self._batches(name, pairs, compute, tick)
        sent = [found.pop(f"sender_{i}_BLN") for i in range(len(FRACTIONS))]
        return {**found, "sender_FBLN": np.stack(sent)}

    def _by_head(self, name: str, pairs, heads: Sequence[Head], run, tick: Tick) -> np.ndarray:
        groups = list(_groups(heads, self.at_once.heads))

        def compute(trace: Trace):
            shape = (len(trace.clean_B), self.config.layers, self.config.query_heads)
            patched_BLN = np.full(shape, np.nan)
            for layer, some in groups:
                filled = [*some, *[some[-1]] * (self.at_once.heads - len(some))]
                readout_BS = np.asarray(jax.device_get(run(trace, layer, filled)))
                patched_BLN[:, layer, some] = readout_BS[:, : len(some)]
            return {"patched_BLN": patched_BLN}

        return self._batches(name, pairs, compute, tick)["patched_BLN"]

    def _batches(self, name: str, pairs: ProbePairs, compute, tick: Tick) -> dict[str, np.ndarray]:
        """Runs pairs of similar beginnings together; returns results in the order of the pairs."""
        first_B = np.argmax(pairs.tokens_BT != pairs.corrupt_BT, axis=1)
        order = np.argsort(first_B, kind="stable")
        pairs = ProbePairs(*(x[order] for x in pairs))
        devices = 1 if self.mesh is None else self.mesh.size
        size = min(self.at_once.pairs, -(-len(order) // devices)) * devices
        parts = []
        for index, (arrays, real) in enumerate(padded_batches(pairs, size, fill=devices)):

            def run(arrays=arrays, real=real):
                trace = trace_pairs(self.config, self.params, ProbePairs(*arrays), self.mesh)
                found = jax.device_get(compute(trace))
                return {key: np.asarray(x, np.float64)[:real] for key, x in found.items()}

            parts.append(self.store.result(f"{name}/{index:04d}", run))
            tick(real)
        back = np.argsort(order, kind="stable")
        return {key: np.concatenate([part[key] for part in parts])[back] for key in parts[0]}


def _groups(heads: Sequence[Head], size: int) -> Iterator[tuple[int, list[int]]]:
    """Groups heads of one layer, at most `size` at a time."""
    for layer in sorted({layer for layer, _ in heads}):
        some = sorted(n for l, n in heads if l == layer)
        for start in range(0, len(some), size):
            yield layer, some[start : start + size]
