import json
import math

import numpy as np

from tests.train.reports.look import legend, lines, names
from train.reports.loss_curves import save_loss_curves


def test_every_stage_is_a_panel_every_run_a_line_and_a_loss_that_is_not_finite_a_gap(
    tmp_path, figures
):
    runs = {
        "one": [(1, "align", 2.0), (2, "align", None), (3, "align", 1.0), (4, "distill", 0.5)],
        "two": [(1, "align", 3.0), (2, "align", 2.0), (3, "distill", 1.5), (4, "distill", 0.25)],
    }
    files = {name: tmp_path / f"{name}.jsonl" for name in runs}
    for name, steps in runs.items():
        records = (dict(zip(("step", "stage", "loss"), values, strict=True)) for values in steps)
        files[name].write_text("".join(f"{json.dumps(record)}\n" for record in records))
    save_loss_curves(tmp_path / "a.png", files, ("align", "distill"))
    align, distill = figures["a.png"].axes
    assert [panel.get_title() for panel in (align, distill)] == ["align", "distill"]
    expected = {"one": [[1, 2, 3], [2.0, math.nan, 1.0]], "two": [[1, 2], [3.0, 2.0]]}
    np.testing.assert_equal(lines(align), expected)
    assert lines(distill) == {"one": [[4], [0.5]], "two": [[3, 4], [1.5, 0.25]]}
    assert names(align) == ("step", "loss") and names(distill) == ("step", "")
    assert legend(align) == list(runs)
    assert len({(line.get_color(), line.get_linestyle()) for line in align.lines}) == 2
