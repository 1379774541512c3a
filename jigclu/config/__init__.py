"""Strict schemas of every stage's config. Defaults are the paper's run (scale `paper`, protocol `official`). No torch in here.

`base` is the ground, then `datasets`, `methods` and `detection`, then `stages`.
"""

from jigclu.config.base import ConfigError, Strict, nearest
from jigclu.config.datasets import DATASET_VERSIONS, PACKABLE, DataConfig, DatasetName, Subset
from jigclu.config.stages import (
    STAGES,
    AugmentConfig,
    Backbone,
    ClassifierConfig,
    DetectConfig,
    EvaluationConfig,
    FinetuneConfig,
    KnnConfig,
    LinearConfig,
    OptimizerConfig,
    Precision,
    PretrainConfig,
    RuntimeConfig,
    identity,
    parse,
)

__all__ = [
    "DATASET_VERSIONS",
    "PACKABLE",
    "STAGES",
    "AugmentConfig",
    "Backbone",
    "ClassifierConfig",
    "ConfigError",
    "DataConfig",
    "DatasetName",
    "DetectConfig",
    "EvaluationConfig",
    "FinetuneConfig",
    "KnnConfig",
    "LinearConfig",
    "OptimizerConfig",
    "Precision",
    "PretrainConfig",
    "RuntimeConfig",
    "Strict",
    "Subset",
    "identity",
    "nearest",
    "parse",
]
