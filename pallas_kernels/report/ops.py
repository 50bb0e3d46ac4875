"""The ops that the report knows. A new one is a module like `gated_delta` and a line here."""

from types import ModuleType

from pallas_kernels.report import gated_delta

OPS: dict[str, ModuleType] = {"gated_delta": gated_delta}
"""By name: a module with the public functions of `gated_delta`."""

PASSES = ("forward", "forward+backward")
