"""DetectConfig -> Detectron2's config: its own Base-RCNN-FPN.yaml with the released configs' settings (protocols.md §2.6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import detectron2
from detectron2.config import CfgNode, get_cfg

from jigclu.config import DetectConfig
from jigclu.config.detection import DetectorConfig

BASE = Path(detectron2.__file__).parent / "model_zoo" / "configs" / "Base-RCNN-FPN.yaml"
# Channels of res2 (R50-JigClu.yaml over d2 defaults; d2's resnet.py requires 64 for blocks without a bottleneck).
RES2_CHANNELS = {"resnet18": 64, "resnet34": 64, "resnet50": 256, "resnet101": 256, "resnet152": 256}


def detectron2_config(config: DetectConfig, images: int, classes: int, device: str) -> CfgNode:
    """The frozen config of a training on `images` images with `classes` categories.

    Norms are plain BN here. With several ranks `jigclu.training.distributed.distribute` synchronises them, which equals the
    released configs' SyncBN (R50-JigClu.yaml:12,15,20); on one rank the two are the same.
    """
    cfg = get_cfg()
    cfg.merge_from_file(str(BASE))
    cfg.merge_from_list([word for pair in _settings(config, images, classes, device).items() for word in pair])
    cfg.freeze()
    return cfg


def _norm(detector: DetectorConfig) -> str:
    return "" if detector.norm == "none" else detector.norm


def _settings(config: DetectConfig, images: int, classes: int, device: str) -> dict[str, Any]:
    """Numbers in comments are lines of the released R50-JigClu.yaml, as in protocols.md §2.6."""
    solver, detector, sizes = config.solver, config.detector, config.sizes
    return {
        "MODEL.DEVICE": device,
        "MODEL.WEIGHTS": "",  # convert.py loads the weights by exact name, without d2's heuristics
        # the network: ResNet-FPN, no mask head, strides as in torchvision (6, 9; d2 defaults.py:30). Nothing is frozen;
        # with `detector.frozen_stages`, stage.py freezes them after the statistics are taken.
        "MODEL.MASK_ON": False,
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.DEPTH": int(config.backbone.removeprefix("resnet")),
        "MODEL.RESNETS.RES2_OUT_CHANNELS": RES2_CHANNELS[config.backbone],
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.NORM": "BN",  # 12
        "MODEL.FPN.NORM": _norm(detector),  # 15
        "MODEL.FPN.OUT_CHANNELS": detector.channels,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[size] for size in detector.anchors],
        # the box head: 4 convolutions, 1 linear layer (17-20; the base has 2 linear layers)
        "MODEL.ROI_BOX_HEAD.NUM_CONV": detector.convs,
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.NORM": _norm(detector),
        "MODEL.ROI_BOX_HEAD.CONV_DIM": detector.channels,
        "MODEL.ROI_BOX_HEAD.FC_DIM": detector.fc_dim,
        "MODEL.ROI_HEADS.NUM_CLASSES": classes,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": detector.rois,
        # proposals (25: 6,000 in the test, the base has 1,000)
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": detector.proposals_train,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": detector.proposals_test,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": detector.proposals,
        "MODEL.RPN.POST_NMS_TOPK_TEST": detector.proposals,
        # pixels as in pretraining: RGB, ImageNet's mean and deviation in levels (27-30)
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        # sizes (d2's Base-RCNN-FPN.yaml and defaults)
        "INPUT.MIN_SIZE_TRAIN": list(sizes.train),
        "INPUT.MAX_SIZE_TRAIN": sizes.longest,
        "INPUT.MIN_SIZE_TEST": sizes.test,
        "INPUT.MAX_SIZE_TEST": sizes.longest,
        # solver: `Solver` states the arithmetic; decay of norms is 0 (d2 defaults)
        "SOLVER.IMS_PER_BATCH": solver.batch_size,
        "SOLVER.BASE_LR": solver.base_lr,
        "SOLVER.MAX_ITER": solver.iterations(images),
        "SOLVER.STEPS": list(solver.steps(images)),
        "SOLVER.WARMUP_ITERS": solver.warmup_iterations(images),
        "SOLVER.MOMENTUM": solver.momentum,
        "SOLVER.WEIGHT_DECAY": solver.weight_decay,
        "SOLVER.GAMMA": solver.gamma,
        # batch norm's statistics are recomputed before the test (32-34; d2 :621-622)
        "TEST.PRECISE_BN.ENABLED": bool(config.precise_bn),
        "TEST.PRECISE_BN.NUM_ITER": config.precise_bn,
    }
