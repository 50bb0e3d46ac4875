"""Prints tables of measured errors, in Markdown."""


def print_table(
    rows: dict[str, dict[str, dict[str, float]]], bounds: dict[str, dict[str, float]]
) -> bool:
    """Prints rows {label: {dtype: numbers}}, numbers over their bound in bold.

    Args:
      bounds: {dtype: {column: the largest number}}, in the order of the columns.

    Returns:
      Whether every number is within its bound.
    """
    within = True

    def cell(numbers: dict[str, float], dtype: str) -> list[str]:
        nonlocal within
        fits = {name: number <= bounds[dtype][name] for name, number in numbers.items()}
        within &= all(fits.values())
        return [f"{x:.0e}" if fits[name] else f"**{x:.0e}**" for name, x in numbers.items()]

    titles = [f"{dtype} {name}" for dtype, of_dtype in bounds.items() for name in of_dtype]
    print("| case | " + " | ".join(titles) + " |")
    print("|---|" + "---|" * len(titles))
    for label, of_dtype in rows.items():
        cells = [text for dtype in bounds for text in cell(of_dtype[dtype], dtype)]
        print(f"| {label} | " + " | ".join(cells) + " |")
    print(flush=True)
    return within
