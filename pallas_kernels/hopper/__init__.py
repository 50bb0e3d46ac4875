"""What the Mosaic GPU kernels for Hopper have in common."""
