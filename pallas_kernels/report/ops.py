"""Lists the ops that the report knows.

A new one is a module like `gated_delta` and a line here.
"""

from types import ModuleType

from pallas_kernels.report import (
    attention,
    attention_decode,
    attention_decode_packed,
    gated_delta,
    slot_attention,
)

OPS: dict[str, ModuleType] = {
    "gated_delta": gated_delta,
    "attention": attention,
    "attention_decode": attention_decode,
    "attention_decode_packed": attention_decode_packed,
    "slot_attention": slot_attention,
}
"""By name: a module with the public names of `gated_delta`."""

PASSES = ("forward", "forward+backward")
