"""Makes of a teacher a hybrid that starts as close to it as its mixers allow."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from hydrahead_jax.config import Hydra, ModelConfig, NativeHybrid
from hydrahead_jax.errors import UserError
from hydrahead_jax.interop.hf_config import is_teacher
from hydrahead_jax.layer_plan import check_from_teacher, check_slots
from hydrahead_jax.mixers.hydra_heads import HydraHeads, hydra_heads
from hydrahead_jax.models import init_params, merge
from hydrahead_jax.sharding import Layout


@functools.partial(jax.jit, static_argnames=("config", "layout"))
def head_rms(
    config: ModelConfig,
    params: dict,
    tokens_BT,
    segment_ids_BT=None,
    positions_BT=None,
    starts_BT=None,
    layout: Layout | None = None,
) -> jax.Array:
    """Returns the RMS of each head's output before W_O over the real tokens, float32 [L, N].

    Args:
      config: of the teacher.
      params: of the teacher.
      tokens_BT: calibration text.
      segment_ids_BT: packed documents, 0 is padding; all one document if None.
      positions_BT: as for `Decoder.__call__`; needed with a layout.
      starts_BT: as for `Decoder.__call__`; needed with a layout.
      layout: of the parameters and tokens on a mesh.
    """
    output = merge(config, params)(
        tokens_BT,
        segment_ids_BT=segment_ids_BT,
        positions_BT=positions_BT,
        starts_BT=starts_BT,
        layout=layout,
    )
    real_BT = jnp.ones_like(tokens_BT) if segment_ids_BT is None else segment_ids_BT
    real_BT11 = (real_BT != 0)[:, :, None, None].astype(jnp.float32)
    count = jnp.maximum(jnp.sum(real_BT11) * config.head_dim, 1.0)
    squares_LN = [
        jnp.sum(real_BT11 * jnp.square(tap.heads_BTNH.astype(jnp.float32)), axis=(0, 1, 3)) / count
        for tap in output.taps
    ]
    return jnp.sqrt(jnp.stack(squares_LN))


def migrate(
    teacher_config: ModelConfig,
    teacher_params: dict,
    student_config: ModelConfig,
    key: jax.Array,
    head_rms_LN: jax.Array,
) -> dict:
    """Returns float32 parameters of the hybrid, none of them sharing a buffer with the teacher's.

    Projections, QK norms and W_O rows are the teacher's. Every delta-rule head gets a copy of the
    KV head that it reads. Gamma is the teacher's head RMS, so that normalising a head does not lose
    its scale. Gates, convolution, decay and write strength start as the mixer initialises them.

    A native hybrid layer keeps all of the teacher's mixer, and native hybrid heads of a HydraHead
    layer the KV heads that they read. The gate of slot m starts as the mean of
    H / M rows of its KV head's key projection, the m-th group of them (arXiv 2510.07019, whose
    code starts gates from the key projection too).

    Args:
      teacher_config: full attention in every layer.
      teacher_params: of the teacher, in any dtype.
      student_config: the teacher's but for the mixers, as `HeadPlan.student` or
        `NativeHybridPlan.student` makes it.
      key: random key of the parameters that the teacher does not have.
      head_rms_LN: from `head_rms`.

    Raises:
      UserError: the two configs differ in more than the mixers, slots do not divide the head dim,
        a mixer is for models from scratch, or the RMS is for another model.
    """
    _check(teacher_config, student_config, head_rms_LN)
    return _migrate(student_config, teacher_params, key, head_rms_LN)


@functools.partial(jax.jit, static_argnames="student_config")
def _migrate(student_config: ModelConfig, teacher_params: dict, key, head_rms_LN) -> dict:
    """Runs the migration as one program.

    The compiler then leaves out parameters that are drawn and replaced.
    """
    # Only the mixers are drawn; the rest, most of the memory, is copied.
    drawn = init_params(dataclasses.replace(student_config, vocab=1, mlp=1), key)["layers"]
    copies = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), teacher_params)
    layers = copies["layers"]
    for layer, mixer in enumerate(student_config.mixers):
        if isinstance(mixer, Hydra):
            heads = hydra_heads(student_config, mixer)
            layers[layer]["mixer"] = _migrate_mixer(
                layers[layer]["mixer"], drawn[layer]["mixer"], heads, head_rms_LN[layer]
            )
        elif isinstance(mixer, NativeHybrid) and mixer.window is not None:
            w_k_DKH = layers[layer]["mixer"]["qkv"]["w_k_DKH"]
            layers[layer]["mixer"]["w_gate_slots_DKM"] = _first_gates(w_k_DKH, mixer.slots)
    return copies


def _first_gates(w_k_DKH, slots: int):
    """Returns gates [D, K, M]: means of H / M key rows each."""
    return jnp.mean(w_k_DKH.reshape(*w_k_DKH.shape[:2], slots, -1), axis=-1)


def _migrate_mixer(teacher: dict, drawn: dict, heads: HydraHeads, head_rms_N) -> dict:
    """Returns `drawn` with everything replaced that the teacher knows."""
    student = dict(drawn)
    if "qkv" in drawn:
        student["qkv"] = teacher["qkv"]
    branches = (
        ("fa", heads.fa, heads.kv),
        ("gdn", heads.gdn, heads.kv_of_gdn),
        ("slots", heads.gdn, heads.kv_of_slots),
    )
    for name, own, kv in branches:
        if name not in drawn:
            continue
        own, kv = jnp.array(own), jnp.array(kv)
        branch = drawn[name] | {"w_o_NHD": teacher["w_o_NHD"][own]}
        if "qkv" in branch:
            branch["qkv"] = {
                "w_q_DNH": teacher["qkv"]["w_q_DNH"][:, own],
                "w_k_DKH": teacher["qkv"]["w_k_DKH"][:, kv],
                "w_v_DKH": teacher["qkv"]["w_v_DKH"][:, kv],
                "q_norm_H": jnp.copy(teacher["qkv"]["q_norm_H"]),
                "k_norm_H": jnp.copy(teacher["qkv"]["k_norm_H"]),
            }
        if name == "slots":
            w_k_DKH = teacher["qkv"]["w_k_DKH"][:, kv]
            slots = branch["w_gate_slots_DKM"].shape[-1]
            branch["w_gate_slots_DKM"] = _first_gates(w_k_DKH, slots)
        if "gamma_N" in branch:
            branch["gamma_N"] = jnp.asarray(head_rms_N, jnp.float32)[own]
        student[name] = branch
    return student


def _check(teacher: ModelConfig, student: ModelConfig, head_rms_LN) -> None:
    if not is_teacher(teacher):
        raise UserError("the teacher must have full attention in every layer")
    for field in dataclasses.fields(ModelConfig):
        mine, theirs = getattr(student, field.name), getattr(teacher, field.name)
        if field.name != "mixers" and mine != theirs:
            raise UserError(
                f"student and teacher differ in {field.name}: {mine} and {theirs}; make the "
                "student from this teacher's config"
            )
    if student.layers != teacher.layers:
        raise UserError(
            f"the student has {student.layers} layers and the teacher {teacher.layers}; use a "
            "head plan made for this teacher"
        )
    for mixer in student.mixers:
        slots = mixer.choices.native_hybrid if isinstance(mixer, Hydra) else mixer
        if isinstance(slots, NativeHybrid):
            check_from_teacher(slots)
            if slots.window is not None:
                check_slots(slots.slots, student.head_dim)
    shape = (teacher.layers, teacher.query_heads)
    if head_rms_LN.shape != shape:
        raise UserError(f"head_rms_LN has shape {head_rms_LN.shape}, the teacher needs {shape}")
