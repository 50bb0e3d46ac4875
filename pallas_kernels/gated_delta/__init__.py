"""Implements the gated delta rule (Gated DeltaNet, arXiv 2412.06464)."""
