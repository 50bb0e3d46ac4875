"""Compares effects of random heads on four devices with those on one.

`python -m tests.hydrahead_jax.selection.on_a_mesh` prints how far they are apart, as JSON.
"""

import json
import os

from tests import quick

os.environ["XLA_FLAGS"] = quick.flags(devices=4)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["NPROC"] = "16"  # threads; with fewer than devices, collectives wait for each other

import jax
import numpy as np

from hydrahead_jax.selection.effects import trace
from hydrahead_jax.selection.effects.measure import Measure
from hydrahead_jax.selection.effects.memory import AtOnce
from hydrahead_jax.selection.effects.pairwise import data_mesh, place_params
from hydrahead_jax.selection.effects.store import Store
from tests.hydrahead_jax.selection.toy import FULL, random_pairs, random_params

RECEIVERS = ((), (1,), (0, 3))
SENDERS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def effects(mesh, params, pairs) -> tuple:
    at_once = AtOnce(pairs=1, heads=2)
    measure = Measure(FULL, place_params(params, mesh), mesh, at_once, Store(None, {}))
    quiet = lambda new: None
    return jax.tree.map(
        np.asarray,
        (
            measure.receivers("receivers", pairs, quiet),
            measure.senders("senders", pairs, RECEIVERS, SENDERS, quiet)[:, :2, :2],
            measure.slopes("slopes", pairs, RECEIVERS, quiet),
        ),
    )


def main() -> None:
    trace._SHORTEST_STEP = 5
    params, pairs = random_params(FULL), random_pairs(FULL, batch=6)
    mesh = data_mesh(4)
    one, four = effects(None, params, pairs), effects(mesh, params, pairs)
    differences = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one, four)
    spread = one[0]["patched_BLN"] - one[0]["clean_B"][:, None, None]
    weight = place_params(params, mesh)["layers"][0]["mlp"]["w_up_DF"]
    print(
        json.dumps(
            {
                "devices": len(jax.devices()),
                "shards_of_a_weight": len({str(s.index) for s in weight.addressable_shards}),
                "largest_difference": float(np.max(jax.tree.leaves(differences))),
                "largest_effect": float(np.abs(spread).max()),
            }
        )
    )


if __name__ == "__main__":
    main()
