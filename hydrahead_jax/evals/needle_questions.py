"""Asks a model about needles, and says which replies are right."""

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from hydrahead_jax.evals.haystack import Haystack
from hydrahead_jax.evals.niah import VALUE_LENGTH, needle_document, needle_symbols
from hydrahead_jax.evals.ruler import RulerDocument, RulerTask
from hydrahead_jax.evals.ruler_facts import FactSource
from hydrahead_jax.evals.ruler_length import fitting_units
from hydrahead_jax.evals.stop_tokens import stop_tokens
from hydrahead_jax.evals.template import Template, family
from hydrahead_jax.generate.decode import until_stop

RULER_REPLY = 128


class Questions(NamedTuple):
    """Says what a model is asked and which replies are right.

    Attributes:
      prompts: token ids of each document up to its answer.
      new_tokens: how many tokens to generate after each.
      stops: tokens that end a reply.
      is_right: for each document, whether the generated tokens answer it.
    """

    prompts: list[np.ndarray]
    new_tokens: int
    stops: tuple[int, ...]
    is_right: list[Callable[[list[int]], bool]]


def needle_questions(
    tokenizer: Tokenizer,
    haystack: Haystack | np.ndarray,
    *,
    length: int,
    needles: int = 1,
    task: RulerTask | None = None,
    template: Template = "auto",
    documents: int = 64,
    seed: int = 0,
    reply: int = RULER_REPLY,
    stops: Collection[int] = (),
) -> Questions:
    """Makes documents that come, with what is generated after them, to `length` tokens.

    Symbols must be answered exactly; in a reply to RULER's documents the value must occur, in
    upper or lower case, before the first token that ends a text, as RULER scores it.

    Args:
      tokenizer: of the model.
      haystack: real text; tokens alone are enough for symbols.
      length: tokens of a document and its reply.
      needles: how many needles the real text has; one of them is asked for.
      task: one of `RULER_TASKS`, in place of `needles` and `template`.
      template: the family of the documents.
      documents: how many.
      seed: with `length` and the kind of documents it determines them, for any model.
      reply: tokens of a reply to RULER's documents; RULER has 128.
      stops: tokens that end a reply, beside those that `stop_tokens` finds in the tokenizer.

    Raises:
      UserError: a document cannot be made; says what to change.
    """
    haystack = Haystack.of(haystack)
    if task is None and family(template, tokenizer) == "symbols":
        rng = np.random.default_rng([seed, length, needles])
        return _symbol_questions(tokenizer, haystack, rng, length, needles, documents)
    task = task or RulerTask(haystack="text", needles=needles)
    rng = np.random.default_rng([seed, length, *repr(task).encode()])
    return _ruler_questions(tokenizer, haystack, rng, length, task, documents, reply, stops)


def _symbol_questions(
    tokenizer: Tokenizer, haystack: Haystack, rng, length: int, needles: int, documents: int
) -> Questions:
    symbols = needle_symbols(tokenizer)
    make = lambda: needle_document(symbols, haystack.tokens, rng, length=length, needles=needles)
    tokens_XT = np.stack([make().tokens_T for _ in range(documents)])
    prompts_XT, answers_XJ = np.split(tokens_XT, [length - VALUE_LENGTH], axis=1)
    is_right = [lambda reply, answer=answer: reply == answer for answer in answers_XJ.tolist()]
    return Questions(list(prompts_XT), VALUE_LENGTH, (), is_right)


def _ruler_questions(
    tokenizer: Tokenizer,
    haystack: Haystack,
    rng,
    length: int,
    task: RulerTask,
    documents: int,
    reply: int,
    stops: Collection[int],
) -> Questions:
    made = [_ruler_document(haystack, rng, task) for _ in range(documents)]
    units = fitting_units(made, tokenizer, length=length, after_prompt=[reply] * documents)
    encode = lambda text: np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
    prompts = [encode(document.prompt(size)) for document, size in zip(made, units, strict=True)]
    values = [document.facts[document.asked].value for document in made]
    ends = tuple(sorted({*stop_tokens(tokenizer), *stops}))
    said = lambda reply: tokenizer.decode(until_stop(reply, ends)).lower()
    is_right = [lambda reply, value=value: value.lower() in said(reply) for value in values]
    return Questions(prompts, reply, ends, is_right)


def _ruler_document(haystack: Haystack, rng, task: RulerTask) -> RulerDocument:
    source = FactSource(task.value, rng)
    facts = [source.fact() for _ in range(task.needles)]
    return RulerDocument(task, facts, int(rng.integers(task.needles)), haystack, source, rng)
