"""README.md of an exported model."""

from hydrahead_jax.cache import cache_bytes
from hydrahead_jax.config import FullAttention, Hydra, ModelConfig
from hydrahead_jax.interop.parity import Parity

_LENGTHS = (4096, 32768, 262144)

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- hydrahead
- hybrid-attention
---

# HydraHead model

Softmax attention on {softmax} of {total} query heads, the gated delta rule on the others of the
same layers (HydraHead, arXiv 2606.20097).

{facts}

## How to load

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
inputs = tokenizer(["Once upon a time"], return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=32)))
```

It needs PyTorch and transformers 5.20 or newer, and runs on CPU. Batches are padded on the left.

## Heads

| layer | softmax heads | KV heads kept |
|---|---|---|
{heads}

Choices: {choices}.

## Cache

| tokens | bytes of one sequence, bfloat16 keys and values, float32 states |
|---|---|
{cache}

## Limits

- Trained for up to {max_length} tokens.
- The cache is the model's own: assisted generation, static and quantised caches do not apply, and
  a conversation cannot be rolled back, only started anew.
- It cannot be served by the Transformers backend of vLLM or SGLang, which expect plain attention.
- The gated delta rule runs in plain PyTorch: right, and slower than a fused kernel.
- Sequences must not be packed into one row: state and convolution run through.
"""


def model_card(config: ModelConfig, facts: dict, parity: Parity | None) -> str:
    """Markdown. `facts` become rows of a table, as they are."""
    total = config.layers * config.query_heads
    softmax = sum(len(_softmax_heads(config, layer)) for layer in range(config.layers))
    facts = {
        **facts,
        "Softmax heads": f"{softmax} of {total} ({softmax / total:.0%})",
        "Compared with JAX": _parity_sentence(parity),
    }
    return _CARD.format(
        softmax=softmax,
        total=total,
        facts=_table({"": "", "---": "---", **facts}),
        heads="\n".join(_heads_row(config, layer) for layer in range(config.layers)),
        choices=_choices(config),
        cache=_table({str(n): f"{cache_bytes(config, n):,}" for n in _LENGTHS}),
        max_length=config.max_length,
    )


def _table(rows: dict) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _softmax_heads(config: ModelConfig, layer: int) -> tuple[int, ...]:
    mixer = config.mixers[layer]
    return tuple(range(config.query_heads)) if isinstance(mixer, FullAttention) else mixer.fa_heads


def _heads_row(config: ModelConfig, layer: int) -> str:
    heads = _softmax_heads(config, layer)
    kept = sorted({config.kv_head(head) for head in heads})
    listed = lambda numbers: ", ".join(map(str, numbers)) or "none"
    return f"| {layer} | {listed(heads)} | {listed(kept)} |"


def _choices(config: ModelConfig) -> str:
    kinds = dict.fromkeys(mixer.choices for mixer in config.mixers if isinstance(mixer, Hydra))
    describe = lambda choices: ", ".join(f"{k}={v!r}" for k, v in vars(choices).items())
    return "; ".join(map(describe, kinds))


def _parity_sentence(parity: Parity | None) -> str:
    if parity is None:
        return "not done: torch was not installed where the model was exported"
    difference, equal, count = parity
    tokens = "the same" if equal else "not the same"
    return (
        f"logits differ by at most {difference:.1e} in float32; {tokens} {count} tokens when "
        "generating greedily"
    )
