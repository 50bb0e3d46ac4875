"""Re-exports `tests.hydrahead_jax.interop.toy`."""

import sys

from tests.hydrahead_jax.interop import toy

sys.modules[__name__] = toy
