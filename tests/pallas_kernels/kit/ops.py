"""Lists the ops that the common tests, error table and sharded runs know."""

from tests.pallas_kernels.attention.suite import ATTENTION
from tests.pallas_kernels.gated_delta.suite import GATED_DELTA
from tests.pallas_kernels.slot_attention.suite import SLOT_ATTENTION

SUITES = {suite.name: suite for suite in (GATED_DELTA, ATTENTION, SLOT_ATTENTION)}
