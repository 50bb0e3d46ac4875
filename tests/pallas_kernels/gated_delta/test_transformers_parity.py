"""Compares the rule with Qwen3-Next's in `transformers`, with initial and final state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import gated_delta
from tests.pallas_kernels.gated_delta.cases import Case, make_inputs
from tests.pallas_kernels.gated_delta.suite import GATED_DELTA
from tests.tolerances import KERNEL, error_ratio

torch = pytest.importorskip("torch", reason="PyTorch parity needs the extra `torch`")
qwen3_next = pytest.importorskip(
    "transformers.models.qwen3_next.modeling_qwen3_next",
    reason="PyTorch parity needs the extra `torch`",
)
CASE = Case(name="transformers", length=77, key_heads=2, value_heads=2, value_dim=24)
CASES = {
    "chunked": CASE,
    "reference": CASE,
    "tpu": dataclasses.replace(CASE, key_dim=64, value_dim=64),
}
run = jax.jit(gated_delta, static_argnames=("implementation", "interpret"))


@pytest.mark.parametrize(
    "theirs", ["torch_recurrent_gated_delta_rule", "torch_chunk_gated_delta_rule"]
)
@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("ours", CASES)
def test_output_and_state(ours, theirs, state):
    inputs = make_inputs(CASES[ours])
    initial = inputs.state_BNHP if state else None
    tensor = lambda x: torch.from_numpy(np.array(x))
    wanted_BTNP, wanted_BNHP = getattr(qwen3_next, theirs)(
        *map(tensor, inputs[:5]),
        initial_state=tensor(initial) if state else None,
        output_final_state=True,
    )
    out_BTNP, last_BNHP = run(
        *inputs[:5],
        initial_state_BNHP=initial,
        implementation=ours,
        interpret=GATED_DELTA.implementations[ours].is_kernel,
    )
    assert out_BTNP.dtype == jnp.float32
    assert error_ratio(out_BTNP, wanted_BTNP) < KERNEL["float32"].forward
    assert error_ratio(last_BNHP, wanted_BNHP) < KERNEL["float32"].forward
