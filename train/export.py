"""From a run to a folder that PyTorch loads."""

from collections.abc import Callable
from pathlib import Path

from hydrahead_jax.interop import export_torch
from hydrahead_jax.local_path import local_path
from train.run_folder import CONFIG, read_json
from train.saved_model import load_saved


def export_run(run: Path, out: Path, say: Callable[[str], None] = print) -> float | None:
    """Writes the student of a finished run as a Hugging Face folder.

    Returns:
      The largest difference between PyTorch's logits and ours, None where it was not measured.

    Raises:
      UserError: the run is not finished, or `out` is in use.
    """
    run, out = local_path(run), local_path(out)
    model = load_saved(run)
    report = export_torch(out, model.config, model.params, model.tokenizer, card=_card(run))
    say(str(report))
    return report.max_abs_logit_difference


def _card(run: Path) -> dict:
    path = run / CONFIG
    record = read_json(path) if path.is_file() else {}
    if "head_plan" not in record:
        return {}
    plan, config = record["head_plan"], record["config"]
    return {
        "Base model": Path(config["teacher"]).name,
        "Head plan": f"{plan['strategy']}, {sum(map(len, plan['fa_heads']))} softmax heads",
        "Training": ", ".join(f"{s['name']} {s['steps']} steps" for s in config["stages"]),
    }
