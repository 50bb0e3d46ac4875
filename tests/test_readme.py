"""Runs every command of the README, in its order, on the small teacher; only made shorter."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import quick
from tests.root import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
KERNELS, LOAD_EXPORT = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHORTER = {
    "select": [
        "settings.pairs=6",  # as in the demo's test: the same heads, whose programs are compiled
        "settings.senders=none",
        "settings.total=False",
        "settings.compare_attribution=False",
        "knock_out.counts=(0, 1)",
        "knock_out.documents=8",
        "knock_out.draws=1",
    ],
    "transfer": [f"stages.{stage}.steps=2" for stage in ("align", "distill", "finetune")],
    "evaluate": ["lengths=(256,)", "documents=8", "batch=8", "text_windows=4"],
    "export": [],
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """Makes a folder where `configs` is found and `runs` is new."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    environment = quick.environment(PYTHONPATH=str(ROOT))
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_commands_of_the_train_program_run_in_the_readmes_order(checkout):
    pytest.importorskip("torch", reason="the export compares with PyTorch: run `make test`")
    program = [c.split() for c in COMMANDS if c.startswith("python -m train")]
    assert [words[3] for words in program] == list(SHORTER)
    for words in program:
        done = run([sys.executable, *words[1:], *SHORTER[words[3]]], checkout)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    assert (checkout / "runs/tiny_select/head_scores.csv").is_file()
    assert (checkout / "runs/tiny_transfer_hf/config.json").is_file()


def test_the_readmes_python_loads_the_export(checkout):
    pytest.importorskip("torch", reason="PyTorch is not installed: run in the Python 3.11 cell")
    done = run([sys.executable, "-c", LOAD_EXPORT + "print(type(model).__name__)"], checkout)
    assert done.stdout.strip().endswith("HydraHeadForCausalLM"), done.stderr


def test_the_readmes_kernels_run(checkout):
    code = KERNELS + "print(out_BTNP.shape, state_BNHP.shape, out_BTNH.shape)"
    done = run([sys.executable, "-c", code], checkout)
    assert done.stdout == "(1, 1000, 4, 64) (1, 4, 64, 64) (1, 1000, 3, 64)\n", done.stderr


def test_the_make_targets_of_the_readme_exist():
    targets = [c.split()[1] for c in COMMANDS if c.startswith("make ")]
    assert targets == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_all_commands_of_the_readme_are_run_somewhere():
    known = ("python -m train", "make ")
    assert [c for c in COMMANDS if not c.startswith(known)] == []
