"""Trains a small Qwen3-architecture model from scratch on text and needle documents."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer

from hydrahead_jax.cache import layer_formats
from hydrahead_jax.config import Hydra, ModelConfig, NativeHybrid
from hydrahead_jax.dataclass_json import to_plain
from hydrahead_jax.errors import UserError
from hydrahead_jax.evals import EvalSettings, evaluate
from hydrahead_jax.interop import export_torch, save_hf_teacher
from hydrahead_jax.interop.hf_config import is_teacher
from hydrahead_jax.interop.tokenizer_files import copy_tokenizer_files
from hydrahead_jax.json_file import dumps
from hydrahead_jax.local_path import local_path
from hydrahead_jax.models import init_params
from hydrahead_jax.precision import Precision, training_policy
from hydrahead_jax.sharding import MeshConfig
from hydrahead_jax.token_ids import check_tokenizer
from train.data.batches import make_batches
from train.data.text import Corpus, TextSource, read_documents
from train.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from train.files.param_paths import flatten, unflatten
from train.files.run_folder import METRICS, TOKENIZER, open_run, save_model, write_json
from train.run.loop import Job, run
from train.run.settings import RunSettings
from train.stage.mesh_checks import check_mesh
from train.stage.stage import Stage, check_stages


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scales:
    """Sets the initial scales at which small models form the retrieval circuit.

    Attributes:
      embed_std: standard deviation of the embedding.
      output: factor on the projections that write to the residual stream.
      qk_gain: gain of the norms on queries and keys; 1 where there are none.
    """

    embed_std: float = 0.1
    output: float = 0.1
    qk_gain: float = 1.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Sets the accuracies that a teacher must reach at the first length of the evaluation.

    A teacher that misses one of them is thrown away.
    """

    niah_single: float = 0.95
    niah_multikey: float = 0.85


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Describes the training of a teacher, or of native hybrid attention, from scratch.

    Attributes:
      run: folder of checkpoints and metrics, one sub-folder for each seed that is tried.
      out: Hugging Face folder that the teacher is saved to.
      model: config of the model, without HydraHead layers; the tokenizer gets its vocabulary. One
        with native hybrid attention is saved as `python -m train export` saves it.
      keys: number of key symbols in the tokenizer.
      values: number of value symbols in the tokenizer.
      text: text that the tokenizer is trained on.
      scales: initial scales of the parameters.
      stages: stages of training, in order.
      evaluation: settings of the evaluation on held-out text.
      evaluation_text: text that the evaluation reads.
      target: accuracies that the teacher must reach.
      seed: first seed that is tried.
      attempts: most seeds that are tried, one after another, until one reaches the target.
      precision: precision of the computation.
      running: how the run is kept going.
    """

    run: str
    out: str
    model: ModelConfig
    keys: int
    values: int
    stages: tuple[Stage, ...]
    evaluation: EvalSettings
    text: TextSource = TextSource()
    evaluation_text: TextSource = TextSource()
    scales: Scales = Scales()
    target: Target = Target()
    seed: int = 0
    attempts: int = 3
    precision: Precision = "auto"
    running: RunSettings = RunSettings()


def pretrain(config: PretrainConfig, say: Callable[[str], None] = print) -> dict:
    """Trains, evaluates and saves a model; picks up where it was interrupted.

    Returns:
      The evaluation of the model that was saved.

    Raises:
      UserError: the config does not fit together, or no seed reached the target.
    """
    check(config)
    for stage in config.stages:
        mesh = stage.mesh or MeshConfig()
        check_mesh(stage, mesh, len(jax.devices()), config.model, None)
    documents = read_documents(config.text)
    folder, _ = local_path(config.run), local_path(config.out)
    open_run(folder, _record(config))
    tokenizer = _tokenizer(config, documents, folder / TOKENIZER)
    corpus = Corpus(tokenizer)
    for stage in config.stages:
        make_batches(stage.data, corpus, config.seed)
    haystack = corpus.haystack(config.evaluation_text, "held_out")
    for seed in range(config.seed, config.seed + config.attempts):
        job = _job(config, corpus, folder / f"seed_{seed}", seed, say)
        result = run(job)
        if result.was_finished:
            say(f"seed {seed} is trained already")
        report = evaluate(config.model, result.params, tokenizer, haystack, config.evaluation)
        write_json(job.folder / "evaluation.json", report)
        say(f"seed {seed}: {dumps(report)}")
        if _reached(config, report):
            _save(config, result.params, folder / TOKENIZER, job.folder)
            say(f"saved the {_name(config.model)} to {config.out}")
            return report
        say(f"seed {seed} missed the target accuracy")
    raise UserError(
        f"none of {config.attempts} seeds reached {config.target}; train longer or allow more "
        "attempts=..."
    )


def check(config: PretrainConfig) -> None:
    """Raises UserError where the config does not fit together."""
    if any(isinstance(mixer, Hydra) for mixer in config.model.mixers):
        raise UserError(
            "HydraHead layers are made from a teacher, and model.mixers has some; use "
            "FullAttention() or NativeHybrid(...) for each layer"
        )
    norms = (isinstance(m, NativeHybrid) and not m.qk_norm for m in config.model.mixers)
    if any(norms) and config.scales.qk_gain != 1:
        raise UserError(
            f"scales.qk_gain={config.scales.qk_gain} is a gain of the QK norm, which some layers "
            "of model.mixers do not have; set it to 1"
        )
    check_stages(config.stages, config.model.max_length)
    layer_formats(config.model, config.evaluation.kv_cache)
    for stage in config.stages:
        if stage.loss != "next_token":
            raise UserError(f"stage {stage.name!r}: loss={stage.loss!r} needs a teacher")


def small_scale_params(config: ModelConfig, scales: Scales, key: jax.Array) -> dict:
    """Returns random parameters with the given initial scales."""

    def scaled(path: str, leaf):
        match path.rpartition("/")[2]:
            case "w_embed_VD":
                return leaf * (scales.embed_std * config.embed**0.5)
            case "w_o_NHD" | "w_down_FD":
                return leaf * scales.output
            case "q_norm_H" | "k_norm_H":
                return jnp.full_like(leaf, scales.qk_gain)
        return leaf

    params = flatten(init_params(config, key))
    return unflatten({path: scaled(path, leaf) for path, leaf in params.items()})


def _tokenizer(config: PretrainConfig, documents: list[str], folder: Path) -> Tokenizer:
    if not (folder / "tokenizer.json").is_file():
        tokenizer = train_tokenizer(
            documents, vocab=config.model.vocab, keys=config.keys, values=config.values
        )
        save_tokenizer(tokenizer, folder, config.model.max_length)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    check_tokenizer(tokenizer, config.model.vocab, str(folder))
    if tokenizer.get_vocab_size() != config.model.vocab:
        raise UserError(
            f"the text gave a vocabulary of {tokenizer.get_vocab_size()} tokens where the model "
            f"has {config.model.vocab}; give more text or lower model.vocab"
        )
    return tokenizer


def _job(config: PretrainConfig, corpus: Corpus, folder: Path, seed: int, say) -> Job:
    open_run(folder, _record(config) | {"seed": seed})
    save_model(folder, config.model)
    return Job(
        folder=folder,
        stages=config.stages,
        model=config.model,
        initial=lambda: small_scale_params(config.model, config.scales, jax.random.key(seed)),
        corpus=corpus,
        seed=seed,
        policy=training_policy(config.precision),
        running=config.running,
        say=say,
    )


def _record(config: PretrainConfig) -> dict:
    """Returns all settings that determine the teacher."""
    return {k: v for k, v in to_plain(config).items() if k not in ("run", "out", "running")}


def _reached(config: PretrainConfig, report: dict) -> bool:
    length = str(config.evaluation.lengths[0])
    return all(
        report[task][length] >= getattr(config.target, task)
        for task in ("niah_single", "niah_multikey")
    )


def _name(model: ModelConfig) -> str:
    return "teacher" if is_teacher(model) else "model"


def _save(config: PretrainConfig, params: dict, tokenizer: Path, run_folder: Path) -> None:
    out = local_path(config.out)
    if not is_teacher(config.model):
        export_torch(out, config.model, params, tokenizer, dtype=jnp.bfloat16)
        return
    out.mkdir(parents=True, exist_ok=True)
    save_hf_teacher(out, config.model, params)
    copy_tokenizer_files(tokenizer, out)
    shutil.copyfile(run_folder / METRICS, out / "training_log.jsonl")
    shutil.copyfile(run_folder / "evaluation.json", out / "evaluation.json")
