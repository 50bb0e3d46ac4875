"""Holds the test suite."""

import os

# The Mosaic GPU interpreter's warpgroups wait for each other inside host callbacks: with as few
# threads as CPU cores, on a small machine, all would wait. Read when the CPU client starts.
os.environ.setdefault("NPROC", "8")
