"""The frozen encoder that evaluation stages start from."""

from __future__ import annotations

import torch

from jigclu.config import EvaluationConfig
from jigclu.network import load_encoder
from jigclu.training.checkpoint import load_verified
from jigclu.training.features import Extractor
from jigclu.training.session import Session


def frozen_extractor(config: EvaluationConfig, session: Session) -> Extractor:
    """The upstream pretraining's encoder.pt; with no upstream, random weights from the job's seed (the floor)."""
    torch.manual_seed(session.folder.seed)
    path = session.folder.upstream_encoder()
    return Extractor(load_encoder(config.backbone, load_verified(path) if path else None), config, session.where.device)
