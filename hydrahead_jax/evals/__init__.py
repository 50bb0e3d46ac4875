"""Measures what a model can still do."""

from hydrahead_jax.evals.evaluate import EvalSettings, evaluate
from hydrahead_jax.evals.haystack import Haystack
from hydrahead_jax.evals.needle_questions import needle_questions
from hydrahead_jax.evals.niah_accuracy import niah_accuracy
from hydrahead_jax.evals.text_loss import TextLoss, text_loss

__all__ = [
    "EvalSettings",
    "Haystack",
    "TextLoss",
    "evaluate",
    "needle_questions",
    "niah_accuracy",
    "text_loss",
]
