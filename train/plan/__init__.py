"""Computes what a transfer takes before machines are rented: `python -m train plan`."""
