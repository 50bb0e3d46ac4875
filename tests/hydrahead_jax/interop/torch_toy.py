"""Makes a tiny model of the exported code, without an export."""

from tests.hydrahead_jax.interop.with_torch import torch

# isort: split
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.interop.hf_config import to_hf_config
from hydrahead_jax.interop.torch_model.configuration_hydrahead import HydraHeadConfig
from hydrahead_jax.interop.torch_model.modeling_hydrahead import HydraHeadForCausalLM
from tests.hydrahead_jax.interop import toy


def make(*fa_heads: tuple[int, ...], attention: str = "sdpa", **choices):
    """Makes a HydraHead layer for each tuple of softmax heads; no parameter has a special value."""
    return make_of(toy.hybrid(*fa_heads, **choices), attention)


def make_of(ours: ModelConfig, attention: str = "sdpa"):
    """Makes a model of this config; no parameter has a special value."""
    config = HydraHeadConfig(**to_hf_config(ours, "float32"), attn_implementation=attention)
    torch.manual_seed(0)
    model = HydraHeadForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def tokens(*shape: int, seed: int = 1):
    return torch.randint(97, shape, generator=torch.Generator().manual_seed(seed))


def logits(model, ids, **options):
    with torch.inference_mode():
        return model(ids, **options).logits
