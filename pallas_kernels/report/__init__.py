"""Reports what the kernels cost on every target, against the physical floor: `python -m`."""
