"""Makes what the report's ops share: arrays with heads side by side, and the chips of a table."""

TPUS = ("v5e", "v5p", "v6e", "tpu7x")


def side_by_side(x):
    """Puts heads side by side, [B, T, N * H], as the projections around an op write and read them.

    A TPU would have to copy [B, T, N, H] into that order, which no model asks of it.
    """
    return x.reshape(*x.shape[:2], -1)


def chips_worth_a_row(implementation: str, **others: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the chips for which `--all-targets` compiles an implementation.

    A kernel is compiled for the chips where it runs, plain JAX for one TPU and the GPU because its
    programs take minutes, and the reference for none.

    Args:
      others: chips of implementations that an op has beside these.
    """
    known = {"tpu": TPUS, "gpu": ("h200",), "reference": ()} | others
    return known.get(implementation, ("v6e", "h200"))
