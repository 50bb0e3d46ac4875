"""Converts between Hugging Face folders and our parameters, and from a teacher to a hybrid."""

from hydrahead_jax.interop.hf_export import save_hf_teacher
from hydrahead_jax.interop.hf_import import load_hf, read_config
from hydrahead_jax.interop.migrate import head_rms, migrate
from hydrahead_jax.interop.parity import Parity, check_parity
from hydrahead_jax.interop.torch_export import ExportReport, export_torch

__all__ = [
    "ExportReport",
    "Parity",
    "check_parity",
    "export_torch",
    "head_rms",
    "load_hf",
    "migrate",
    "read_config",
    "save_hf_teacher",
]
