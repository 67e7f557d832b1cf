"""One configuration: read in layers, validated once, then never changed. In: files, variables, flags. Out: `TrainingConfig`."""

from mlx_gardener.config.reading import (
    RENAMED,
    RETIRED,
    as_of_today,
    load_config,
    parse_value,
    validate_config,
)
from mlx_gardener.config.sections import (
    GIB,
    OTHER_SHARE,
    VALIDATION_SHARE,
    ArmName,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    LoraConfig,
    OptimizerConfig,
    ParallelConfig,
    ThrottlingConfig,
    TrainingConfig,
    known_keys,
)

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
    "ThrottlingConfig",
    "TrainingConfig",
    "as_of_today",
    "known_keys",
    "load_config",
    "parse_value",
    "validate_config",
]
