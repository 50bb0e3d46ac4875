"""Knowing what a transfer takes before renting the machines: `python -m train plan`."""
