"""From a teacher to a head plan, with the scores behind it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.interop import load_hf
from hydrahead_jax.selection import SelectionSettings, allocate, budget, receivers_kept, select
from hydrahead_jax.selection.heat_map import save_heat_map
from train.config_file import to_plain
from train.run_folder import PLAN, open_run, write_json
from train.text import TextSource, end_of_text, load_corpus


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Attributes:
    run: folder of head_scores.csv, selection.json, heat_map.png and head_plan.json.
    teacher: Hugging Face folder of a Qwen3 model.
    strategy: one of `hydrahead_jax.selection.STRATEGIES`.
    ratio: delta-rule heads to softmax heads, such as "3:1".
    text: that the probes' needles are put into.
    settings: of the probes.
    seed: of drawn plans and of ties.
    """

    run: str
    teacher: str
    strategy: str = "global-interp"
    ratio: str = "3:1"
    text: TextSource = TextSource()
    settings: SelectionSettings = SelectionSettings()
    seed: int = 0


def select_heads(config: SelectConfig, say: Callable[[str], None] = print) -> HeadPlan:
    """Scores all heads and writes the plan.

    Raises:
      UserError: the inputs are not right, or the folder holds another selection.
    """
    teacher, params = load_hf(config.teacher, jnp.float32)
    fa_heads = budget(teacher, config.ratio)
    corpus = load_corpus(Path(config.teacher) / "tokenizer.json", teacher)
    tokens = np.concatenate(corpus.documents(config.text))
    haystack = tokens[tokens != end_of_text(corpus.tokenizer)]
    folder = Path(config.run)
    record = {key: value for key, value in to_plain(config).items() if key != "run"}
    open_run(folder, {"config": record})
    scores, account = select(teacher, params, corpus.tokenizer, haystack, config.settings)
    plan = allocate(scores, teacher, config.strategy, fa_heads=fa_heads, seed=config.seed)
    scores.save_csv(folder / "head_scores.csv")
    write_json(folder / "selection.json", account)
    save_heat_map(scores.score_LN, folder / "heat_map.png", plan=plan, title=config.strategy)
    plan.save(folder / PLAN)
    say(
        f"{plan.count} of {teacher.layers * teacher.query_heads} heads stay softmax, "
        f"{receivers_kept(scores, plan)} of {int(scores.receivers_LN.sum())} receivers among them; "
        f"they read {plan.surviving_kv_heads} KV heads; the plan is {folder / PLAN}"
    )
    return plan
