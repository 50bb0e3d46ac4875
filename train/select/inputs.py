"""Loads the inputs of head selection: the model, its tokenizer, its text and its probes."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from hydrahead_jax.cache import layer_formats
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.haystack import Haystack
from hydrahead_jax.evals.needle_questions import Questions
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.local_path import local_path
from hydrahead_jax.selection import HeadScores, allocate, budget
from hydrahead_jax.selection.checks.knockout import KnockOutSettings
from hydrahead_jax.selection.effects.pairwise import data_mesh, place_params
from hydrahead_jax.selection.pipeline import softmax_heads
from hydrahead_jax.selection.probes.general import general_probes
from hydrahead_jax.selection.scores.scores import RETRIEVAL, MeanEffects
from train.data.text import Corpus, load_corpus
from train.run.saved_model import load_saved
from train.select.config import SelectConfig
from train.select.knock_out import knock_out_questions


class Subject(NamedTuple):
    """Holds the model that is scored, and the text to score it with.

    Attributes:
      config: config of the model.
      params: parameters of the model, in the config's dtype.
      corpus: its tokenizer, and text.
      probing: text for the probes.
      questions: questions for the knock-out; None if it is left out.
      general: sub-probes and pairs from files.
      mesh: None for one device.
    """

    config: ModelConfig
    params: dict
    corpus: Corpus
    probing: Haystack
    questions: Questions | None
    general: tuple
    mesh: Mesh | None


def load_subject(config: SelectConfig) -> Subject:
    """Reads the model, the text and the files of general ability.

    Raises:
      UserError: one of them is missing or wrong, or there are fewer devices than asked for.
    """
    if not 1 <= config.devices <= jax.device_count():
        raise UserError(
            f"devices={config.devices} must be 1 to {jax.device_count()}, as many as there are here"
        )
    model = load_saved(local_path(config.teacher), config.dtype)
    check_model(config, model.config)
    corpus = load_corpus(model.tokenizer / "tokenizer.json", model.config)
    mesh = data_mesh(config.devices) if config.devices > 1 else None
    return Subject(
        config=model.config,
        params=place_params(model.params, mesh),
        corpus=corpus,
        probing=corpus.haystack(config.text, "train"),
        questions=_questions(config, model.config, corpus),
        general=general_probes([local_path(path) for path in config.general], corpus.tokenizer),
        mesh=mesh,
    )


def check_model(config: SelectConfig, model: ModelConfig) -> None:
    """Raises UserError where the config does not suit the model, before anything is computed."""
    softmax_LN = softmax_heads(model)
    first_PLN = (softmax_LN & (np.cumsum(softmax_LN, axis=1) == 1)).astype(float)[None]
    made_up = HeadScores(
        probes=("made up",),
        capabilities=(RETRIEVAL,),
        softmax_LN=softmax_LN,
        receiver=MeanEffects(first_PLN, first_PLN),
        clean_P=np.zeros(1),
        corrupted_P=np.zeros(1),
    )
    make_plan(config, model, made_up)
    if config.knock_out is not None:
        config.knock_out.counts_for(int(softmax_LN.sum()))
        layer_formats(model, config.knock_out.kv_cache)
    for length in config.stability.lengths if config.stability else ():
        if length > model.max_length:
            raise UserError(
                f"stability.lengths={config.stability.lengths}: documents of {length} tokens are "
                f"longer than the {model.max_length} that the model allows; shorten them"
            )


def _questions(config: SelectConfig, model: ModelConfig, corpus: Corpus) -> Questions | None:
    if config.knock_out is None:
        return None
    settings = knock_out_settings(config, model)
    held_out = corpus.haystack(config.text, "held_out")
    return knock_out_questions(corpus, held_out, settings, config.settings.template)


def knock_out_settings(config: SelectConfig, model: ModelConfig) -> KnockOutSettings:
    """Returns the settings with the length of the probes where none is given."""
    length = config.knock_out.length or config.settings.length_for(model)
    return dataclasses.replace(config.knock_out, length=length)


def make_plan(config: SelectConfig, model: ModelConfig, scores: HeadScores) -> HeadPlan:
    """Makes the plan that the config asks for."""
    return allocate(
        scores,
        model,
        config.strategy,
        fa_heads=None if config.ratio is None else budget(model, config.ratio),
        kv_bytes=config.kv_bytes,
        kv_slack=config.kv_slack,
        kv_dtype=config.kv_dtype,
        tensor_multiple=config.tensor_multiple,
        seed=config.seed,
    )
