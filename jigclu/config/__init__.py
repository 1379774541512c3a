"""Strict schemas of every stage's config. Defaults are the paper's run (scale `paper`, protocol `official`). No torch.

Import order: `base`, then `datasets`, `methods` and `detection`, then `stages`.
"""

from jigclu.config.base import ConfigError, Strict, error_line, nearest
from jigclu.config.datasets import DATASETS, DataConfig, DatasetName, DatasetSpec, Subset, dataset_spec, packable_names
from jigclu.config.stages import (
    METRICS,
    STAGES,
    AugmentConfig,
    Backbone,
    ClassifierConfig,
    DenseConfig,
    DetectConfig,
    EvaluationConfig,
    FinetuneConfig,
    KnnConfig,
    LinearConfig,
    OptimizerConfig,
    Precision,
    PretrainConfig,
    RuntimeConfig,
    StageName,
    identity,
    parse,
)

__all__ = [
    "DATASETS",
    "METRICS",
    "STAGES",
    "AugmentConfig",
    "Backbone",
    "ClassifierConfig",
    "ConfigError",
    "DataConfig",
    "DatasetName",
    "DatasetSpec",
    "DenseConfig",
    "DetectConfig",
    "EvaluationConfig",
    "FinetuneConfig",
    "KnnConfig",
    "LinearConfig",
    "OptimizerConfig",
    "Precision",
    "PretrainConfig",
    "RuntimeConfig",
    "StageName",
    "Strict",
    "Subset",
    "dataset_spec",
    "error_line",
    "identity",
    "nearest",
    "packable_names",
    "parse",
]
