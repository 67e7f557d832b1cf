"""One configuration: read in layers, validated once, then never changed. In: files, variables, flags. Out: `TrainingConfig`."""

from mlx_gardener.config.reading import RETIRED, load_config, parse_value, validate_config
from mlx_gardener.config.sections import (
    GIB,
    OTHER_SHARE,
    VALIDATION_SHARE,
    ArmName,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    LoraConfig,
    NeighbourConfig,
    OptimizerConfig,
    ParallelConfig,
    TrainingConfig,
    known_keys,
)

__all__ = [
    "GIB",
    "OTHER_SHARE",
    "RETIRED",
    "VALIDATION_SHARE",
    "ArmName",
    "DataConfig",
    "EngineConfig",
    "EvaluationConfig",
    "LoraConfig",
    "NeighbourConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "TrainingConfig",
    "known_keys",
    "load_config",
    "parse_value",
    "validate_config",
]
