"""The gated delta rule as Pallas kernels for TPU."""
