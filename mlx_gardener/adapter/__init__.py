"""Adapters as files: written whole or not at all, in mlx-lm's and PEFT's form, with a manifest that says what they are.

In: LoRA weights by mlx-lm's names, or other programs' adapters (`imports`). Out: a directory in the registry (`manager`), layers of
a base that have the weights (`loaded`), files for other programs (`exports`). Only safetensors and JSON are ever read back.
Cost: reading and writing megabytes. An export costs more: a few rows through the base to check what it says (`agreement`), and for
merged models a copy of the base (`fused`).
"""

from mlx_gardener.adapter.base import base_name, check_base
from mlx_gardener.adapter.loaded import attach_adapter
from mlx_gardener.adapter.manager import PeftManager, StagedAdapter
from mlx_gardener.adapter.manifest import LoadedAdapter, ManifestDetails, load_adapter_directory

__all__ = [
    "LoadedAdapter",
    "ManifestDetails",
    "PeftManager",
    "StagedAdapter",
    "attach_adapter",
    "base_name",
    "check_base",
    "load_adapter_directory",
]
