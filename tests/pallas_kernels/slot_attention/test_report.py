"""Checks the work of slot attention that the report counts."""

from pallas_kernels.report import slot_attention
from pallas_kernels.slot_attention.shapes import SHORT


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
