"""The ops that the report knows. A new one is a module like `gated_delta` and a line here."""

from types import ModuleType

from pallas_kernels.report import attention, gated_delta

OPS: dict[str, ModuleType] = {"gated_delta": gated_delta, "attention": attention}
"""By name: a module with the public names of `gated_delta`."""

PASSES = ("forward", "forward+backward")
