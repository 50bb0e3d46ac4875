"""Defines the settings of a training stage, and what follows from them."""
