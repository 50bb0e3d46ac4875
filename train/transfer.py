"""Provides what scripts import to convert a teacher in stages."""

from train.commands.transfer import TransferConfig, transfer

__all__ = ["TransferConfig", "transfer"]
