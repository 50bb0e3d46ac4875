"""Tabulates what turns took, in Markdown."""

from collections.abc import Sequence
from typing import Any

from pallas_kernels.report.tables import markdown

Row = dict[str, Any]
_RESIDENCY = ("hit rate", "resident", "evictions")
_ROUNDS = (2, 5, 8)


def simulated_table(rows: Sequence[Row]) -> str:
    """Makes a table with a line for each layout and format; times are P50 and P95 in seconds."""
    names = ("layout", "bits", "KiB a token", "sequences that fit", *_RESIDENCY)
    names += ("million tokens read", "tokens a second", "TTFT")
    names += tuple(f"in round {number}" for number in _ROUNDS)
    lines = [
        [
            row["layout"],
            str(row["bits"]),
            f"{row['bytes_a_token'] / 1024:.1f}",
            str(row["fit"]),
            *_residency(row),
            f"{row['tokens_read'] / 1e6:.2f}",
            f"{row['reply_tokens_a_second']:.0f}",
            _times(row, 2),
            *(_times(row["rounds"][number - 1], 2) for number in _ROUNDS),
        ]
        for row in rows
    ]
    return markdown(names, lines)


def replayed_table(rows: Sequence[Row]) -> str:
    """Makes a table with a line for each format."""
    names = ("bits", "bytes a token", "budget KiB", "sequences that fit", *_RESIDENCY)
    names += ("tokens read", "TTFT P50, P95 ms", "tokens a second")
    names += ("right, first time", "right, asked again")
    lines = [
        [
            str(row["bits"]),
            str(row["bytes_a_token"]),
            f"{row['budget'] / 1024:.0f}" if row["budget"] else "no limit",
            str(row["fit"]) if row["budget"] else "all",
            *_residency(row),
            str(row["tokens_read"]),
            _times({key: 1e3 * row[key] for key in ("ttft_p50_s", "ttft_p95_s")}, 1),
            f"{row['reply_tokens_a_second']:.0f}",
            f"{row['right_first']:.1%}",
            f"{row['right_again']:.1%}",
        ]
        for row in rows
    ]
    return markdown(names, lines)


def _residency(row: Row) -> list[str]:
    return [f"{row['hit_rate']:.0%}", f"{row['resident']:.1f}", str(row["evictions"])]


def _times(row: Row, digits: int) -> str:
    return f"{row['ttft_p50_s']:.{digits}f}, {row['ttft_p95_s']:.{digits}f}"
