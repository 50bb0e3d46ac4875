"""Writes README.md of an exported model."""

from hydrahead_jax.cache import cache_bytes
from hydrahead_jax.config import Hydra, ModelConfig
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

Softmax attention on {softmax} of {total} query heads, the gated delta rule on the others of the
same layers (HydraHead, arXiv 2606.20097).

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
- The cache is transformers' `DynamicCache`. The state of the delta rule cannot be taken back to an
  earlier token: `crop`, assisted generation, static and quantised caches are refused.
- It cannot be served by the Transformers backend of vLLM or SGLang, which expect plain attention.
- It has no converter to GGUF (llama.cpp, Ollama), ONNX or MLX.
- The gated delta rule runs in plain PyTorch, and on a GPU by flash-linear-attention and
  causal-conv1d where they are installed, which is faster.
- Documents packed into one row are kept apart where `position_ids` start again or `cu_seq_lens_q`
  tells where they do; such a row leaves no cache.
"""


def model_card(config: ModelConfig, facts: dict, parity: Parity | None, header: str = "") -> str:
    """Returns Markdown. `facts` become rows of a table, and `header` lines of the header."""
    total = config.layers * config.query_heads
    softmax = sum(len(config.softmax_heads(layer)) for layer in range(config.layers))
    facts = {
        **facts,
        "Softmax heads": f"{softmax} of {total} ({softmax / total:.0%})",
        "Compared with JAX": _parity_sentence(parity),
    }
    return _CARD.format(
        header=header,
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


def _heads_row(config: ModelConfig, layer: int) -> str:
    heads = config.softmax_heads(layer)
    kept = sorted({config.kv_head(head) for head in heads})
    listed = lambda numbers: ", ".join(map(str, numbers)) or "none"
    return f"| {layer} | {listed(heads)} | {listed(kept)} |"


def _choices(config: ModelConfig) -> str:
    kinds = dict.fromkeys(mixer.choices for mixer in config.mixers if isinstance(mixer, Hydra))
    describe = lambda choices: ", ".join(f"{k}={v!r}" for k, v in vars(choices).items())
    return "; ".join(map(describe, kinds))


def _parity_sentence(parity: Parity | None) -> str:
    if parity is None:
        return "not done where the model was exported"
    tokens = "the same" if parity.greedy_tokens_equal else "not the same"
    return (
        f"logits differ by at most {parity.max_abs_logit_difference:.1e} in float32; {tokens} "
        f"{parity.new_tokens} tokens when generating greedily"
    )
