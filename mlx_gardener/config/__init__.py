"""One configuration: read in layers, validated once, then never changed. In: files, variables, flags. Out: `TrainingConfig`."""

from mlx_gardener.config.reading import (
    RENAMED,
    RETIRED,
    as_of_today,
    as_recorded,
    load_config,
    parse_value,
    validate_config,
)
from mlx_gardener.config.sections import (
    OTHER_SHARE,
    VALIDATION_SHARE,
    ArmName,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    LoraConfig,
    OptimizerConfig,
    ParallelConfig,
    RetrievalWish,
    ServingConfig,
    ThrottlingConfig,
    TrainingConfig,
    known_keys,
)
from mlx_gardener.platform.sizes import GIB

__all__ = [
    "GIB",
    "OTHER_SHARE",
    "RENAMED",
    "RETIRED",
    "VALIDATION_SHARE",
    "ArmName",
    "DataConfig",
    "EngineConfig",
    "EvaluationConfig",
    "LoraConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "RetrievalWish",
    "ServingConfig",
    "ThrottlingConfig",
    "TrainingConfig",
    "as_of_today",
    "as_recorded",
    "known_keys",
    "load_config",
    "parse_value",
    "validate_config",
]
