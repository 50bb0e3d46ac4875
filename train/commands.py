"""The commands; what they need is imported when one is called, so that --help is quick."""

from typing import Annotated

import tyro

ConfigFile = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
Assignments = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="KEY=VALUE")]


def pretrain(config: ConfigFile, assignments: Assignments = ()) -> None:
    """Train a small teacher from scratch and save it as a Hugging Face folder.

    Args:
        config: Python file whose config() returns a PretrainConfig.
        assignments: Changes to the config, such as stages.long.steps=100.
    """
    from train.config_file import load_config
    from train.pretrain import PretrainConfig
    from train.pretrain import pretrain as command

    command(load_config(config, PretrainConfig, assignments), say=_say)


def _say(sentence: str) -> None:
    print(sentence, flush=True)


COMMANDS = {"pretrain": pretrain}
