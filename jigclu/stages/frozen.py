"""The frozen encoder that evaluation stages start from."""

from __future__ import annotations

import torch

from jigclu.config import ConfigError, EvaluationConfig
from jigclu.network import load_encoder
from jigclu.training import interrupt
from jigclu.training.checkpoint import load_verified
from jigclu.training.features import Extractor
from jigclu.training.session import Session


def alone(session: Session) -> None:
    """Raises ConfigError where several ranks were started: a frozen forward pass is one process's work."""
    if session.where.world > 1:
        raise ConfigError(f"evaluation of a frozen encoder runs in one process, not in {session.where.world}")


def frozen_extractor(config: EvaluationConfig, session: Session) -> Extractor:
    """The upstream pretraining's encoder.pt; with no upstream, random weights from the job's seed (the floor)."""
    torch.manual_seed(session.folder.seed)
    path = session.folder.upstream_encoder()
    backbone = load_encoder(config.backbone, load_verified(path) if path else None)

    def tell(text: str) -> None:
        session.folder.set_status("running", force=False, message=text)
        if interrupt.requested():  # features are made again in any case: there is nothing to save
            session.folder.set_status("interrupted", message=f"stopped while making {text}")
            raise interrupt.Interrupted(f"stopped while making {text}")

    return Extractor(backbone, config, session.where.device, tell)
