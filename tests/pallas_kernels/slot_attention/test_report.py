"""Checks slot attention in the report: the counted work, and a row of the device at hand."""

from pallas_kernels.report import slot_attention
from pallas_kernels.report.rows import Task, make_row
from pallas_kernels.slot_attention.shapes import SHORT, SMALL


def test_flops_and_least_bytes_a_token():
    """H = 128, M = 64, chunks of 64; 16 query heads read 8 KV heads."""
    forward = slot_attention.flops(SHORT, "forward") / SHORT.tokens
    assert forward == 16 * 4 * (64 * 128 + 64 * 128 + 64 * 64) + 8 * 4 * 64 * 128
    both = slot_attention.flops(SHORT, "forward+backward") / SHORT.tokens
    backward = 16 * (10 * 2 * 64 * 128 + 12 * 64 * 64) + 8 * 8 * 64 * 128
    assert both == forward + backward
    read = 16 * (4 * 128 + 4) + 8 * (4 * 128 + 4 * 64)
    assert slot_attention.least_bytes(SHORT, "forward") == SHORT.tokens * read
    more = 16 * (6 * 128 + 8) + 8 * (8 * 128 + 8 * 64)
    assert slot_attention.least_bytes(SHORT, "forward+backward") == SHORT.tokens * (read + more)


def test_a_row_of_the_device_at_hand():
    task = Task(
        op="slot_attention", chip="local", implementation="chunked", shape=SMALL,
        passes="forward+backward",
    )  # fmt: skip
    row = make_row(task)
    assert row.seconds > 0 and not row.refusal
    assert str(SMALL) == "T64 N2 K1 H16 M16"
