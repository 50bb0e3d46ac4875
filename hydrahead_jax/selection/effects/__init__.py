"""Measures effects of heads on the answers by patching."""
