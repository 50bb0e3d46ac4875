"""Orders a TPU kernel's independent chains of products in its program."""

from collections.abc import Generator


def interleave(chains: list[Generator], skew: float) -> None:
    """Advances coroutines in turn, each starting `skew` turns after the one before.

    Each chain is a sequence of dependent products with vector work in between. The compiler keeps
    roughly the order of the program, so chains written one after the other would leave the matrix
    units waiting; side by side, one chain's vector work stands beside another's products.
    """
    starts = [round(skew * i) for i in range(len(chains))]
    running, turn = list(zip(starts, chains, strict=True)), 0
    while running:
        running = [
            (start, chain)
            for start, chain in running
            if start > turn or next(chain, StopIteration) is not StopIteration
        ]
        turn += 1
