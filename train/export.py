"""Provides what scripts import to export a run for PyTorch."""

from train.commands.export import export_run

__all__ = ["export_run"]
