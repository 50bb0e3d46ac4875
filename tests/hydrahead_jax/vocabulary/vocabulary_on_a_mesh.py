"""Compares the losses on eight devices with those on one; test_vocabulary runs it."""

import os

from tests import quick

os.environ["XLA_FLAGS"] = quick.flags(devices=8)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["NPROC"] = "16"  # threads for collectives, which wait for one another

import jax
import jax.numpy as jnp
import numpy as np

from hydrahead_jax.sharding import MeshConfig, make_layout
from hydrahead_jax.vocabulary import Unembedding, kept_scores, pair_scores, tiles, top_tokens

jax.config.update("jax_enable_x64", True)
tiles.TOKENS_AT_ONCE = 5
B, T, D = 4, 6, 8


def scores(hidden_BTD, weight, teacher_BTD, teacher_weight, targets_BT, *, axis, layout, at_once):
    """Returns all that is computed over the vocabulary, with gradients."""
    options = {"at_once": at_once, "layout": layout}
    teacher = (teacher_BTD, Unembedding(teacher_weight, axis))
    weight_BT = jnp.cos(jnp.arange(B * T)).reshape(B, T)

    def loss(hidden_BTD, weight):
        student = (hidden_BTD, Unembedding(weight, axis), targets_BT)
        pairs = pair_scores(*teacher, *student, **options)
        kept = top_tokens(*teacher, 3, **options)
        some = kept_scores(kept.normalised(), *student, **options)
        values = (pairs, kept, some)
        total = pairs.kl_X + 0.5 * pairs.nll_X + 0.3 * some.kl_X
        return jnp.sum(weight_BT * total), values

    return jax.grad(loss, (0, 1), has_aux=True)(hidden_BTD, weight)


def check(vocabulary: int, axis: int, mesh: MeshConfig, dtype, tolerance: float) -> None:
    """Compares a mesh with one device; `axis` is the vocabulary's axis in the unembedding."""
    random = lambda seed, *shape: 3 * jax.random.normal(jax.random.key(seed), shape, dtype)
    shape = (vocabulary, D) if axis == 0 else (D, vocabulary)
    arrays = (random(0, B, T, D), random(1, *shape), random(2, B, T, D), random(3, *shape))
    targets_BT = jax.random.randint(jax.random.key(4), (B, T), 0, vocabulary)
    options = {"axis": axis, "at_once": 5}
    run = jax.jit(scores, static_argnames=("axis", "layout", "at_once"))
    expected = run(*arrays, targets_BT, layout=None, **options)
    layout = make_layout(mesh)
    name = "w_embed_VD" if axis == 0 else "w_unembed_DV"
    whole = jax.sharding.NamedSharding(layout.mesh, layout.param_spec(name, shape))
    hidden = layout.sharding("BTD")
    placed = jax.device_put(arrays, (hidden, whole, hidden, whole))
    actual = run(*placed, targets_BT, layout=layout, **options)
    assert actual[0][1].sharding.is_equivalent_to(whole, 2)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        scale = max(1.0, np.abs(b).max())
        assert np.abs(a - b).max() <= tolerance * scale, (vocabulary, axis, mesh.text())


if __name__ == "__main__":
    mesh = MeshConfig(fsdp=2, context=2, tensor=2)
    check(24, 0, mesh, jnp.float64, 1e-12)
    check(23, 1, mesh, jnp.float32, 1e-5)
    print("all equal")
