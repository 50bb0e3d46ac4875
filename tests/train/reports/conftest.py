from pathlib import Path

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def figures(monkeypatch) -> dict[str, Figure]:
    """Collects the figures that are saved, by the name of the file."""
    saved, savefig = {}, Figure.savefig

    def save(figure: Figure, path: Path, **settings) -> None:
        saved[path.name] = figure
        savefig(figure, path, **settings)

    monkeypatch.setattr(Figure, "savefig", save)
    return saved
