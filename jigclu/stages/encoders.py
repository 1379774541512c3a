"""What evaluation stages start from: the pretrained backbone, frozen or not, and a fresh classifier."""

from __future__ import annotations

import torch
from torch import nn

from jigclu.config import ConfigError, DetectConfig, EvaluationConfig
from jigclu.evaluation.extractor import Extractor
from jigclu.network import Backbone, load_encoder
from jigclu.training import interrupt
from jigclu.training.checkpoint import load_verified
from jigclu.training.session import Session


def require_one_process(session: Session) -> None:
    """Raises ConfigError where several ranks were started: a frozen forward pass is one process's work."""
    if session.rank_info.world > 1:
        raise ConfigError(f"evaluation of a frozen encoder runs in one process, not in {session.rank_info.world}")


def starting_backbone(config: EvaluationConfig | DetectConfig, session: Session) -> Backbone:
    """The upstream pretraining's encoder.pt; with no upstream, random weights from the job's seed (the floor)."""
    torch.manual_seed(session.folder.seed)
    path = session.folder.upstream_encoder()
    return load_encoder(config.backbone, load_verified(path) if path else None)


def fresh_classifier(dim: int, classes: int, seed: int) -> nn.Linear:
    """Weights N(0, 0.01), bias 0 (protocols.md §2.1, §2.4); the same weights for the same seed, whatever was drawn before."""
    head = nn.Linear(dim, classes)
    nn.init.normal_(head.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(head.bias)
    return head


def frozen_extractor(config: EvaluationConfig, session: Session) -> Extractor:
    """`starting_backbone`, frozen."""
    backbone = starting_backbone(config, session)

    def tell(text: str) -> None:
        session.folder.set_status("running", force=False, message=text)
        if interrupt.requested():  # features are made again in any case: there is nothing to save
            session.folder.set_status("interrupted", message=f"stopped while making {text}")
            raise interrupt.Interrupted(f"stopped while making {text}")

    return Extractor(backbone, config, session.rank_info.device, tell)
