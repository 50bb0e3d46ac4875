"""Makes head scores of effects written down by hand."""

import numpy as np

from hydrahead_jax.selection.probes.retrieval import SubProbe
from hydrahead_jax.selection.scores.pair_effects import PairEffects
from hydrahead_jax.selection.scores.scores import HeadScores, head_scores


def made_scores(
    receiver_PLN, capabilities=None, *, sender_PLN=None, total_PLN=None, softmax_LN=None
) -> HeadScores:
    """Makes scores of one pair for each sub-probe; all heads are softmax by default."""
    receiver_PLN = np.asarray(receiver_PLN, float)
    P = len(receiver_PLN)
    capabilities = capabilities or ("retrieval",) * P
    pair = lambda x_PLN, p: None if x_PLN is None else np.asarray(x_PLN[p], float)[None]
    effects = [
        PairEffects(
            receiver_BLN=receiver_PLN[p][None],
            sender_BLN=pair(sender_PLN, p),
            total_BLN=pair(total_PLN, p),
            clean_B=np.array([p + 0.1]),
            corrupted_B=np.array([-p / 3]),
            skipped=0,
        )
        for p in range(P)
    ]
    probes = [SubProbe(name=f"probe_{p}", capability=c) for p, c in enumerate(capabilities)]
    if softmax_LN is None:
        softmax_LN = np.ones(receiver_PLN.shape[1:], bool)
    return head_scores(probes, effects, np.asarray(softmax_LN, bool))
