"""Makes a tiny model of the exported code, without an export."""

import torch

from hydrahead_jax.interop.hf_config import mixers_to_json
from hydrahead_jax.interop.torch_model.configuration_hydrahead import HydraHeadConfig
from hydrahead_jax.interop.torch_model.modeling_hydrahead import HydraHeadForCausalLM
from tests.hydrahead_jax.interop import toy

SAME = 2e-5


def make(*fa_heads: tuple[int, ...], attention: str = "sdpa", **choices):
    """Makes a HydraHead layer for each tuple of softmax heads; no parameter has a special value."""
    ours = toy.hybrid(*fa_heads, **choices)
    config = HydraHeadConfig(
        vocab_size=ours.vocab,
        hidden_size=ours.embed,
        intermediate_size=ours.mlp,
        num_hidden_layers=ours.layers,
        num_attention_heads=ours.query_heads,
        num_key_value_heads=ours.kv_heads,
        head_dim=ours.head_dim,
        max_position_embeddings=ours.max_length,
        rope_theta=ours.rope_theta,
        mixers=mixers_to_json(ours.mixers),
        attn_implementation=attention,
    )
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
