"""Draws the quality of a KV cache's formats over their bytes. Needs matplotlib."""

from pathlib import Path

from train.reports.figure import BLUE, GREY, make_axes, plain_axes, save

_SIZE = (960, 600)
_LEAST_KL = 1e-9


def save_quality_by_bytes(formats: dict[str, dict], path: Path) -> None:
    """Writes a PNG of the KL divergence over the bytes of a token, one mark for each format.

    A format without any, such as the raw one, is a dotted line at its bytes.
    """
    axes = make_axes(*_SIZE)
    lossy = [of for of in formats.values() if of["kl"] is not None and of["kl"] > _LEAST_KL]
    axes.plot(
        [of["bytes_a_token"] for of in lossy], [of["kl"] for of in lossy], "o", color=BLUE, ms=6
    )
    for name, of in formats.items():
        if of in lossy:
            at, offset = (of["bytes_a_token"], of["kl"]), (7, -3)
            axes.annotate(name, at, xytext=offset, textcoords="offset points", fontsize="small")
        else:
            axes.axvline(of["bytes_a_token"], color=GREY, ls=":", lw=1.2)
            at = (of["bytes_a_token"], 0.95)
            axes.annotate(
                f"{name}: none ",
                at,
                xycoords=("data", "axes fraction"),
                ha="right",
                fontsize="small",
            )
    if lossy:
        axes.set_yscale("log")
    axes.set(xlabel="bytes a token", ylabel="KL from the raw cache, nats a token")
    axes.set_xlim(0, 1.15 * max(of["bytes_a_token"] for of in formats.values()))
    plain_axes(axes)
    save(axes, path, title="Quality over bytes")
