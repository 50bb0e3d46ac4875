"""Shows plans as tables: on the terminal, and as Markdown."""

from collections.abc import Sequence

from rich.table import Table

from train.plan.stage_plan import GIB, StagePlan

NETWORK = (
    "Bytes sent are those that leave a device, by the algorithm that sends least. The network's "
    "time takes all links of a chip to be busy, whatever way the bytes go; a collective along one "
    "axis of a torus has fewer, so the true time is above it."
)


def terminal_table(plans: Sequence[StagePlan], title: str) -> Table:
    """Makes a table with a column for each stage."""
    table = Table(title=title, title_justify="left")
    table.add_column("on each device")
    for plan in plans:
        table.add_column(plan.stage, justify="right")
    columns = [dict(lines(plan)) for plan in plans]
    for name in dict.fromkeys(name for column in columns for name in column):
        style = "bold" if name in ("memory", "verdict", "step at least") else None
        table.add_row(name, *(column.get(name, "") for column in columns), style=style)
    return table


def lines(plan: StagePlan) -> list[tuple[str, str]]:
    """Returns (name, value) of everything known about a stage."""
    found = [("mesh", plan.mesh), ("microbatches, remat", f"{plan.microbatches}, {plan.remat}")]
    if plan.refusal is not None:
        return [*found, ("verdict", "REFUSED")]
    found += [("devices", str(plan.devices)), *_memory_lines(plan)]
    found += [
        ("verdict", verdict(plan)),
        ("model FLOP, all devices", scaled(plan.flops)),
        ("FLOP at least, all devices", scaled(plan.flops_at_least)),
    ]
    if plan.step_s is not None:
        found += _time_lines(plan)
    return [*found, ("traced, compiled", f"{plan.trace_s:.0f} s, {plan.compile_s:.0f} s")]


def verdict(plan: StagePlan) -> str:
    """Says whether a stage can be run."""
    if plan.refusal is not None:
        return "refused"
    return "fits" if plan.fits else "OUT OF MEMORY"


def _memory_lines(plan: StagePlan) -> list[tuple[str, str]]:
    memory = plan.memory
    gib = lambda size: "?" if size is None else f"{size / GIB:.2f} GiB"
    parts = [
        ("trained parameters", memory.trained),
        ("frozen parameters", memory.frozen),
        ("optimizer state", memory.optimizer),
        ("teacher", memory.teacher),
        ("batch", memory.batch),
        ("gradients", memory.gradients),
        ("activations, work space", memory.activations),
    ]
    more = "more than " if memory.activations is None else ""
    share = f"{more}{memory.total / GIB:.1f} of {memory.capacity / GIB:.1f} GiB"
    return [(name, gib(size)) for name, size in parts if size != 0] + [("memory", share)]


def _time_lines(plan: StagePlan) -> list[tuple[str, str]]:
    found = [(f"sent: {kind}", f"{size / GIB:.2f} GiB") for kind, size in plan.sent.items()]
    floors = {"compute": plan.compute_s, "memory": plan.memory_s, "network": plan.network_s}
    found += [(f"{name} at least", seconds_text(value)) for name, value in floors.items()]
    bound = max(floors, key=floors.get)
    return [
        *found,
        ("step at least", f"{seconds_text(plan.step_s)} ({bound})"),
        ("tokens a day at most", scaled(plan.tokens_a_day)),
        ("hours at least", f"{plan.hours:.2f}"),
    ]


def seconds_text(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def scaled(value: float) -> str:
    """Formats a number with a letter for its power of a thousand, as 3.4 P."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"
