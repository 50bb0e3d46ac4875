"""Writes README.md of an exported model."""

from hydrahead_jax.cache import cache_bytes
from hydrahead_jax.config import Hydra, ModelConfig, NativeHybrid
from hydrahead_jax.interop.parity import Parity

_LENGTHS = (4096, 32768, 262144)

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- hydrahead
- hybrid-attention
{header}---

# HydraHead model

{summary}

{facts}

## How to load

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
inputs = tokenizer(["Once upon a time"], return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=32)))
```

It needs PyTorch and transformers, tested with 5.21 to 5.24, and runs on CPU. Batches are padded on
the left. Without `trust_remote_code=True` both lines ask on the terminal whether to run the code in
this folder, and wait for the answer.

## How to evaluate

```bash
lm_eval --model hf --tasks lambada_openai \\
  --model_args pretrained=FOLDER,trust_remote_code=True,max_length={max_length}
```

lm_eval cuts longer inputs to `max_length`; give a larger one for tasks of long context.

{layers}

## Cache

| tokens | bytes of one sequence, {keys}, float32 states |
|---|---|
{cache}{kv_cache}

## Limits

- Trained for up to {max_length} tokens.
- The cache is transformers' `DynamicCache`. Recurrent states cannot be taken back to an earlier
  token: `crop`, assisted generation, static and quantised caches are refused.
- It cannot be served by the Transformers backend of vLLM or SGLang, which expect plain attention.
- It has no converter to GGUF (llama.cpp, Ollama), ONNX or MLX.
{speed}
- Documents packed into one row are kept apart where `position_ids` start again or `cu_seq_lens_q`
  tells where they do; such a row leaves no cache.
"""
_HYDRA = """\
Softmax attention on {softmax} of {total} query heads, {others} on the others of the
same layers (HydraHead, arXiv 2606.20097)."""
_HYDRA_SPEED = """\
- The gated delta rule runs in plain PyTorch, and on a GPU by flash-linear-attention and
  causal-conv1d where they are installed, which is faster."""
_SLOTS_SPEED = "- Windows and slots run in plain PyTorch."
_HEADS = """\
## Heads

| layer | softmax heads | KV heads kept |
|---|---|---|
{heads}

Choices: {choices}."""
_NATIVE_HYBRID = """\
Native hybrid attention (arXiv 2510.07019): {everything} of {layers} layers see all tokens, the
others a window of tokens and slots for those before it, in one softmax."""
_NATIVE_HYBRID_SPEED = """\
- Windows and slots run in plain PyTorch. Layers that see all tokens and have sinks need
  `attn_implementation` "sdpa" or "eager"."""
_WINDOWS = """\
## Layers

| layer | window | slots | sinks | gate normaliser |
|---|---|---|---|---|
{rows}{form}"""
_FROM_SCRATCH = """

Layers {layers} have {values}."""


_KV_CACHE = """

Keys and values are stored in the format {name}. `from_pretrained(FOLDER, kv_cache="bf16")`
stores them unchanged, and `generate` takes `kv_cache` too."""


def model_card(
    config: ModelConfig,
    facts: dict,
    parity: Parity | None,
    header: str = "",
    kv_cache: str | tuple[str | None, ...] | None = None,
) -> str:
    """Returns Markdown.

    Args:
      config: of the model.
      facts: rows of a table.
      parity: agreement with PyTorch, if it was measured.
      header: lines of the header.
      kv_cache: names of formats, see `layer_formats`.
    """
    total = config.layers * config.query_heads
    softmax = sum(len(config.softmax_heads(layer)) for layer in range(config.layers))
    facts = {
        **facts,
        "Softmax heads": f"{softmax} of {total} ({softmax / total:.0%})",
        "Compared with JAX": _parity_sentence(parity),
    }
    kinds = set(map(type, config.mixers))
    summary, layers, speed = [], [], []
    if Hydra in kinds or NativeHybrid not in kinds:
        slots = [m for m in config.mixers if isinstance(m, Hydra) and m.choices.native_hybrid]
        others = "native hybrid attention" if slots else "the gated delta rule"
        summary.append(_HYDRA.format(softmax=softmax, total=total, others=others))
        rows = "\n".join(_heads_row(config, layer) for layer in range(config.layers))
        layers.append(_HEADS.format(heads=rows, choices=_choices(config)))
        speed.append(_SLOTS_SPEED if slots else _HYDRA_SPEED)
    if NativeHybrid in kinds:
        everything = sum(len(config.softmax_heads(i)) > 0 for i in range(config.layers))
        summary.append(_NATIVE_HYBRID.format(everything=everything, layers=config.layers))
        layers.append(_WINDOWS.format(rows=_window_rows(config), form=_form(config)))
        speed.append(_NATIVE_HYBRID_SPEED)
    return _CARD.format(
        header=header,
        summary="\n\n".join(summary),
        facts=_table({"": "", "---": "---", **facts}),
        layers="\n\n".join(layers),
        speed="\n".join(speed),
        cache=_table({str(n): f"{cache_bytes(config, n, kv_format=kv_cache):,}" for n in _LENGTHS}),
        keys="bfloat16 keys and values" if kv_cache is None else "keys and values in that format",
        kv_cache="" if kv_cache is None else _KV_CACHE.format(name=_names(kv_cache)),
        max_length=config.max_length,
    )


def _names(kv_cache: str | tuple[str | None, ...]) -> str:
    return kv_cache if isinstance(kv_cache, str) else ", ".join(name or "none" for name in kv_cache)


def _table(rows: dict) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _heads_row(config: ModelConfig, layer: int) -> str:
    heads = config.softmax_heads(layer)
    kept = sorted({config.kv_head(head) for head in heads})
    listed = lambda numbers: ", ".join(map(str, numbers)) or "none"
    return f"| {layer} | {listed(heads)} | {listed(kept)} |"


def _window_rows(config: ModelConfig) -> str:
    rows = []
    for layer, mixer in enumerate(config.mixers):
        if isinstance(mixer, NativeHybrid):
            window = "all tokens" if mixer.window is None else mixer.window
            values = (layer, window, mixer.slots, mixer.sinks, mixer.gate_normaliser)
            rows.append(f"| {' | '.join(map(str, values))} |")
    return "\n".join(rows)


def _form(config: ModelConfig) -> str:
    """Returns sentences on the layers that no layer made from a teacher equals."""
    found = {}
    for layer, mixer in enumerate(config.mixers):
        if isinstance(mixer, NativeHybrid) and mixer.from_scratch:
            found.setdefault(", ".join(mixer.from_scratch), []).append(str(layer))
    sentences = (
        _FROM_SCRATCH.format(layers=", ".join(layers), values=values)
        for values, layers in found.items()
    )
    return "".join(sentences)


def _choices(config: ModelConfig) -> str:
    kinds = dict.fromkeys(mixer.choices for mixer in config.mixers if isinstance(mixer, Hydra))
    describe = lambda choices: ", ".join(
        f"{k}={v!r}" for k, v in vars(choices).items() if v is not None
    )
    return "; ".join(map(describe, kinds))


def _parity_sentence(parity: Parity | None) -> str:
    if parity is None:
        return "not done where the model was exported"
    tokens = "the same" if parity.greedy_tokens_equal else "not the same"
    return (
        f"logits differ by at most {parity.max_abs_logit_difference:.1e} in float32; {tokens} "
        f"{parity.new_tokens} tokens when generating greedily"
    )
