"""Reads what Mosaic GPU dumps of each kernel: ptxas' report, resources, machine code.

The machine code (nvdisasm with control codes) has one instruction a line:

    wait mask : read barrier : write barrier : yield : stall count   /*address*/  instruction

The stall count is the least number of cycles before the same warp issues again, so a sum of stall
counts is what one warp needs if it never waits for memory, for a tensor core or for another warp.
"""

import dataclasses
import functools
import re
from pathlib import Path

_INSTRUCTION = re.compile(r"\s*\S+?:\S:\S:\S:(\d\d)\s+/\*[0-9a-f]+\*/\s+(.*?)\s*$")
_LABEL = re.compile(r"\s*(\.L_\S+):")
_LOOP_BRANCH = re.compile(r"@!?U?P\w+ BRA\S*\s.*`\((\.L_\S+)\)")
_NOTE = re.compile(r"^ptxas .*?(?:info|warning) *: *(\(C\d+\) .*|Potential .*)$", re.MULTILINE)
_WGMMA = re.compile(r"(?:@!?U?P\w+ )?HGMMA\.64x(\d+)x(\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Code:
    """Counts the instructions of a stretch of machine code, run once from top to bottom.

    Attributes:
      instructions: how many instructions it has.
      wgmma: how many of them are warpgroup matrix products.
      stall_cycles: sum of the stall counts.
      tensor_cycles: cycles that the products keep one multiprocessor's tensor cores busy, at
        Hopper's 2,048 bf16 multiply-adds a cycle (4,096 FLOP, NVIDIA H100 white paper).
    """

    instructions: int
    wgmma: int
    stall_cycles: int
    tensor_cycles: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuKernel:
    """Shows what the compiler says of one kernel.

    Attributes:
      registers: per thread.
      spill_bytes: local memory stored and loaded because registers ran out, per thread.
      shared_memory: bytes per block; of several kernels of one name, of the one with the most.
      code: all of it.
      loop: the body of the loop with the most matrix products; None without one.
      notes: the assembler's, such as matrix products that it makes wait for each other.
    """

    name: str
    registers: int
    spill_bytes: int
    shared_memory: int
    code: Code
    loop: Code | None
    notes: tuple[str, ...] = ()

    @property
    def wgmma(self) -> int:
        return self.code.wgmma


def read_kernels(folder: str) -> tuple[GpuKernel, ...]:
    """Reads the kernels whose dumps (`MOSAIC_GPU_DUMP_TO`) lie in `folder`."""
    paths = sorted(Path(folder).glob("*.ptxas"), key=_order)
    return tuple(map(_read_kernel, paths))


def _order(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def _read_kernel(path: Path) -> GpuKernel:
    report = path.read_text()
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    listing = path.with_suffix(".sass_ctrl").read_text()
    return GpuKernel(
        name=path.stem,
        registers=int(re.search(r"Used (\d+) registers", report)[1]),
        spill_bytes=sum(map(int, spills)),
        shared_memory=max(_shared_memory(path)),
        code=read_code(listing),
        loop=read_loop(listing),
        notes=tuple(_NOTE.findall(report)),
    )


def _shared_memory(path: Path) -> list[int]:
    """Returns the shared memory of the kernels of this name: assembling numbers them anew."""
    name = re.compile(re.escape(path.stem.rpartition("_")[0]) + r"_\d+\.resources\.txt")
    texts = [x.read_text() for x in path.parent.iterdir() if name.fullmatch(x.name)]
    return [int(re.search(r"smem_scratch_bytes=(\d+)", text)[1]) for text in texts]


def read_code(listing: str) -> Code:
    """Reads all instructions of a listing."""
    return _summary(_parse(listing)[0])


def read_loop(listing: str) -> Code | None:
    """Reads the loop with the most matrix products, the innermost if several have as many.

    A loop ends with a backward branch under a predicate. Backward branches without one return from
    code that the compiler moved out of the way.
    """
    instructions, labels = _parse(listing)
    ranges = [
        (labels[branch[1]], end + 1)
        for end, (_, text) in enumerate(instructions)
        if (branch := _LOOP_BRANCH.match(text)) and labels.get(branch[1], end) < end
    ]
    bodies = [_summary(instructions[start:end]) for start, end in ranges]
    with_products = [x for x in bodies if x.wgmma]
    return max(with_products, key=lambda x: (x.wgmma, -x.instructions), default=None)


@functools.lru_cache(maxsize=2)
def _parse(listing: str) -> tuple[list[tuple[int, str]], dict[str, int]]:
    """Returns [(stall count, instruction)], and the index that each label stands before."""
    instructions, labels = [], {}
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            instructions.append((int(found[1]), found[2]))
    return instructions, labels


def _summary(instructions: list[tuple[int, str]]) -> Code:
    products = [found for _, text in instructions if (found := _WGMMA.match(text))]
    return Code(
        instructions=len(instructions),
        wgmma=len(products),
        stall_cycles=sum(stall for stall, _ in instructions),
        tensor_cycles=sum(64 * int(x[1]) * int(x[2]) // 2048 for x in products),
    )
