"""The start of every evaluation stage: the pretrained backbone, frozen or not, and a fresh classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from jigclu.config import ConfigError, DenseConfig, DetectConfig, EvaluationConfig, KnnConfig, LinearConfig
from jigclu.data.canvases import open_dataset
from jigclu.data.order import epoch_groups
from jigclu.evaluation.extractor import Extractor
from jigclu.network import Backbone, load_encoder
from jigclu.training import interrupt
from jigclu.training.checkpoint import first_not_finite, load_verified
from jigclu.training.session import Session


def require_one_process(session: Session) -> None:
    """Check that the stage runs in one process, as a frozen forward pass must.

    Raises:
        ConfigError: there are several ranks.
    """
    if session.rank_info.world > 1:
        raise ConfigError(f"evaluation of a frozen encoder runs in one process, not in {session.rank_info.world}")


def starting_backbone(config: EvaluationConfig | DetectConfig | DenseConfig, session: Session) -> Backbone:
    """Load the upstream pretraining's encoder.pt; without upstream, random weights from the job's seed (the floor).

    Raises:
        ConfigError: the encoder is not the one of the checkpoint, not finite, all zero, or of another backbone.
    """
    torch.manual_seed(session.folder.seed)
    path = session.folder.upstream_encoder()
    if not path:
        return load_encoder(config.backbone, None)
    try:
        weights, digest = load_verified(path)
    except ValueError as error:
        raise ConfigError(f"{error}; pretrain it again") from None
    if name := first_not_finite(_dense(weights)):
        raise ConfigError(f"{path} has values that are not finite (the first are in {name}): pretrain it again")
    if not any(bool(value.any()) for value in _dense(weights).values() if isinstance(value, torch.Tensor)):
        raise ConfigError(f"{path} has only zeros: pretrain it again")
    session.read_encoder(digest)
    try:
        return load_encoder(config.backbone, weights)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _dense(weights: dict[str, Any]) -> dict[str, Any]:
    """Without sparse tensors, which load_encoder refuses by name."""
    return {key: value for key, value in weights.items() if getattr(value, "layout", torch.strided) is torch.strided}


def fresh_classifier(dim: int, classes: int, seed: int) -> nn.Linear:
    """Make a classifier with weights N(0, 0.01) and bias 0 (protocols.md §2.1, §2.4) that depend on `seed` only."""
    head = nn.Linear(dim, classes)
    nn.init.normal_(head.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(head.bias)
    return head


def frozen_extractor(config: LinearConfig | KnnConfig, session: Session) -> Extractor:
    """Freeze `starting_backbone`, with its batch norms calibrated on the train split if the config says so.

    Progress goes to status.json, and a stop signal raises Interrupted.
    """
    backbone = starting_backbone(config, session)

    def on_progress(text: str) -> None:
        session.folder.set_status("running", force=False, message=text)
        if interrupt.requested():  # features are computed again in any case: there is nothing to save
            session.folder.set_status("interrupted", message=f"stopped while computing {text}")
            raise interrupt.Interrupted(f"stopped while computing {text}")

    extractor = Extractor(backbone, config, session.rank_info.device, on_progress)
    if config.calibrate_bn:
        train = open_dataset(config.data, "train")
        # In random order, since a batch of one class has other statistics, and in equal batches: each counts as much.
        size = min(config.batch_size, len(train))
        groups = epoch_groups(session.folder.seed, 0, len(train), size)
        extractor.calibrate(train, [index for group in groups for index in group])
    return extractor
