"""Compares the exported hybrid with transformers' Qwen3, on the CPU.

Command: `python -m benchmarks.torch_export`. A small model has the proportions of Qwen3-1.7B and 2
of 8 heads softmax, random weights, float32. Times are CPU seconds of one thread, which other
programs disturb little; the two models alternate, and the fastest run of each counts.
"""

import argparse
import json
import multiprocessing
import resource
import time

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hydrahead_jax.config import Hydra, HydraChoices
from hydrahead_jax.interop.hf_config import mixers_to_json
from hydrahead_jax.interop.torch_model.cache_hydrahead import CACHE_FIELD
from hydrahead_jax.interop.torch_model.configuration_hydrahead import HydraHeadConfig
from hydrahead_jax.interop.torch_model.modeling_hydrahead import HydraHeadForCausalLM

LAYERS = 2
SIZES = {
    "vocab_size": 1024,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 65536,
}
SOFTMAX_HEADS = (0, 5)
MODELS = ("hybrid", "qwen3")
PREFILL, CONTEXT, MEMORY = 2048, 8192, 32768


def make(name: str):
    """Makes one of MODELS, with random weights."""
    torch.manual_seed(0)
    if name == "qwen3":
        return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES)).eval()
    mixer = Hydra(fa_heads=SOFTMAX_HEADS, choices=HydraChoices())
    config = HydraHeadConfig(**SIZES, mixers=mixers_to_json((mixer,) * LAYERS))
    return HydraHeadForCausalLM(config).eval()


def tokens(length: int):
    return torch.randint(SIZES["vocab_size"], (1, length))


def fill(model, length: int):
    """Returns the cache after a prompt of `length` tokens."""
    return model(tokens(length), use_cache=True, logits_to_keep=1)[CACHE_FIELD]


def prefill_seconds(models: dict, runs: int) -> dict[str, float]:
    """Times the fastest prefill of PREFILL tokens, after a warm-up."""
    times = {name: [] for name in models}
    for _ in range(runs + 1):
        for name, model in models.items():
            begin = time.process_time()
            fill(model, PREFILL)
            times[name].append(time.process_time() - begin)
    return {name: min(values[1:]) for name, values in times.items()}


def decode(models: dict, runs: int) -> tuple[dict[str, float], dict[str, int]]:
    """Returns seconds of a step after CONTEXT tokens, and bytes that its operations touch."""
    caches = {name: fill(model, CONTEXT) for name, model in models.items()}
    times, traffic = {name: [] for name in models}, {}
    for _ in range(runs + 4):
        for name, model in models.items():
            begin = time.process_time()
            model(tokens(1), **{CACHE_FIELD: caches[name]}, use_cache=True)
            times[name].append(time.process_time() - begin)
    for name, model in models.items():
        with Traffic() as counted:
            model(tokens(1), **{CACHE_FIELD: caches[name]}, use_cache=True)
        weights = sum(x.nbytes for x in model.parameters())
        traffic[name] = counted.bytes - weights
    return {name: min(values[4:]) for name, values in times.items()}, traffic


class Traffic(TorchDispatchMode):
    """Counts bytes of all arguments and results of operations that are not views."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not any(r.alias_info and not r.alias_info.is_write for r in function._schema.returns):
            leaves = tree_leaves((args, kwargs, out))
            self.bytes += sum(x.nbytes for x in leaves if torch.is_tensor(x))
        return out


def peak_bytes(name: str, length: int) -> int:
    """Returns what a prefill of `length` tokens adds to the peak memory of a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, length))


def _peak(name: str, length: int) -> int:
    torch.set_num_threads(1)
    model = make(name)
    with torch.inference_mode():
        fill(model, 256)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        fill(model, length)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--runs", type=int, default=5, help="of each prefill; 4 times as many steps"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave the long prefills out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    models = {name: make(name) for name in MODELS}
    with torch.inference_mode():
        rows = {f"prefill of {PREFILL}, s": prefill_seconds(models, args.runs)}
        seconds, traffic = decode(models, 4 * args.runs)
    rows[f"decode after {CONTEXT}, s a token"] = seconds
    rows[f"decode after {CONTEXT}, bytes a token beside weights"] = traffic
    if not args.no_memory:
        rows[f"peak memory of a prefill of {MEMORY}, bytes"] = {
            name: peak_bytes(name, MEMORY) for name in MODELS
        }
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    for title, values in rows.items():
        ratio = values["hybrid"] / values["qwen3"]
        numbers = ", ".join(f"{name} {value:.5g}" for name, value in values.items())
        print(f"{title}: {numbers}; hybrid / qwen3 = {ratio:.2f}")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
