"""Base models: which one, its tokenizer, its weights, and the LoRA layers put into it.

In: a model's name. Out: a `BaseModel` ready to train. Nothing heavy is imported before a function needs it.
"""

from mlx_gardener.model.choose import (
    ModelChoice,
    choose_model,
    resolve_model,
    seedling_path,
)
from mlx_gardener.model.load import BaseModel, check_model, load_base, load_lazy_base
from mlx_gardener.model.tokens import CodeTokenizer, FimMarkers, load_tokenizer

__all__ = [
    "BaseModel",
    "CodeTokenizer",
    "FimMarkers",
    "ModelChoice",
    "check_model",
    "choose_model",
    "load_base",
    "load_lazy_base",
    "load_tokenizer",
    "resolve_model",
    "seedling_path",
]
