"""Checks whether a stage fits a mesh, before anything is compiled."""

from collections.abc import Iterator

from hydrahead_jax.cache.layered import CONV_TAPS
from hydrahead_jax.config import Hydra, Mixer, ModelConfig, NativeHybrid
from hydrahead_jax.errors import UserError
from hydrahead_jax.mixers.hydra_heads import hydra_heads
from hydrahead_jax.sharding import MeshConfig, nearest_divisors
from train.stage.stage import Stage


def check_mesh(
    stage: Stage, mesh: MeshConfig, devices: int, config: ModelConfig, teacher: ModelConfig | None
) -> dict[str, int]:
    """Returns the size of each axis for a stage on that many devices.

    Raises:
      UserError: the mesh does not fit the devices, or an axis does not divide what it splits; the
        message names the axis, the size and the nearest sizes that work.
    """
    where = f"stage {stage.name!r}, mesh {mesh.text()}"
    try:
        sizes = mesh.sizes(devices)
    except UserError as error:
        raise UserError(f"stage {stage.name!r}: {error}") from error
    for axis, ranks, what, size in _shares(stage, mesh, sizes, config, teacher):
        if size % ranks:
            works = " and ".join(str(n) for n in nearest_divisors(size, ranks))
            raise UserError(
                f"{where}: {axis} is {ranks}, which does not divide {what} of {size}; take one of "
                f"the nearest that do: {works}"
            )
    tokens = stage.data.length // _chunks(mesh, sizes)
    least, what = max(map(_least_chunk, config.mixers))
    if sizes["context"] > 1 and tokens < least:
        raise UserError(
            f"{where}: context={sizes['context']} leaves chunks of {tokens} tokens, and {what} "
            f"needs {least}; lower context or lengthen data.length"
        )
    return sizes


def _least_chunk(mixer: Mixer) -> tuple[int, str]:
    """Returns the tokens before a chunk that its rank needs, and what for."""
    slots = mixer.choices.native_hybrid if isinstance(mixer, Hydra) else mixer
    if isinstance(slots, NativeHybrid):
        return slots.window or 0, "a window"
    has_convolution = isinstance(mixer, Hydra) and mixer.choices.short_conv
    return (CONV_TAPS - 1 if has_convolution else 0), "the convolution"


def _chunks(mesh: MeshConfig, sizes: dict[str, int]) -> int:
    """Returns the number of pieces that a row is cut into."""
    if sizes["context"] == 1:
        return 1
    return sizes["context"] * (2 if mesh.order == "zigzag" else 1)


def _shares(stage, mesh, sizes, config, teacher) -> Iterator[tuple[str, int, str, int]]:
    """Yields (axis, its size, what it splits, the size of that)."""
    parts = stage.microbatches
    rows = "data * fsdp" + (f" * microbatches={parts}" if parts > 1 else "")
    yield rows, sizes["data"] * sizes["fsdp"] * parts, "the batch", stage.data.batch
    chunks = "2 * context (zigzag order)" if mesh.order == "zigzag" else "context"
    yield chunks, _chunks(mesh, sizes), "the rows' length", stage.data.length
    yield "fsdp", sizes["fsdp"], "the embedding", config.embed
    yield "tensor", sizes["tensor"], "the MLP", config.mlp
    if teacher is not None and stage.loss != "next_token":
        yield "tensor", sizes["tensor"], "the teacher's query heads", teacher.query_heads
    for layer, mixer in enumerate(config.mixers):
        if not isinstance(mixer, Hydra):
            yield "tensor", sizes["tensor"], f"query heads in layer {layer}", config.query_heads
            continue
        heads = hydra_heads(config, mixer)
        yield "tensor", sizes["tensor"], f"the softmax heads in layer {layer}", len(heads.fa)
        is_delta = mixer.choices.native_hybrid is None
        others = "the delta-rule heads" if is_delta else "the other heads"
        yield "tensor", sizes["tensor"], f"{others} in layer {layer}", len(heads.gdn)
