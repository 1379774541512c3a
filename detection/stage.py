"""The stage `detect` (paper §4.3, Table 4; protocols.md §2.6): Faster R-CNN with an FPN over the encoder, on COCO, by Detectron2.

The same contract as jigclu's stages: job folder, status, curve, checkpoints, stop signal. Detectron2 builds the network, the
optimiser and the schedule, reads and augments the images, runs the iterations and scores the boxes.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from detection import compat

compat.prepare()  # before the first import of detectron2, also by the modules below

import detectron2  # noqa: E402
import torch  # noqa: E402
from detectron2.layers import FrozenBatchNorm2d  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.solver import build_optimizer  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torchvision.utils import save_image  # noqa: E402

from detection import data, pictures, train  # noqa: E402
from detection.config import detectron2_config  # noqa: E402
from detection.convert import PREFIX, convert  # noqa: E402
from detection.evaluate import RESULTS, Counted, Scores, evaluate, precise_batch_norm  # noqa: E402
from jigclu.config import ConfigError, DetectConfig  # noqa: E402
from jigclu.data.catalog import data_root  # noqa: E402
from jigclu.data.loader import Unreadable, loader_workers  # noqa: E402
from jigclu.data.sources.coco import expected_images, open_split  # noqa: E402
from jigclu.evaluation.bootstrap import keep_resampled  # noqa: E402
from jigclu.network import Backbone  # noqa: E402
from jigclu.stages.encoders import starting_backbone  # noqa: E402
from jigclu.training import interrupt  # noqa: E402
from jigclu.training.distributed import agree, distribute  # noqa: E402
from jigclu.training.session import Session  # noqa: E402

log = logging.getLogger("jigclu")
# It logs a traceback for every exception that leaves the loop: a stop signal is one, and the worker reports the others.
logging.getLogger("detectron2.engine.train_loop").setLevel(logging.CRITICAL)


def run(config: DetectConfig, folder: str | Path) -> dict[str, Any]:
    """Train a detector from the upstream encoder, or from the seed's random weights. Writes figures/predictions.png.

    Args:
        config: the resolved config.
        folder: the job folder; resumes from the newest checkpoint.

    Returns:
        The content of result.json. Metrics, in percent: ap, ap50, ap75, ap_small, ap_medium, ap_large (COCO's, box),
        agnostic_ap, agnostic_ap50, person_ap, person_ap50; see `evaluate`.

    Raises:
        ConfigError: the batch is not divisible by the ranks, or the data set is incomplete.
        interrupt.Interrupted: a stop was requested.
        session.TrainingError: the loss is not finite.
        DataError: too many images are unreadable.
    """
    session = Session(folder, config.runtime)
    session.read_config(config)
    with tempfile.TemporaryDirectory(prefix="jigclu-detect-") as scratch:
        return Detector(config, session, Path(scratch)).run()


class Detector:
    """Network, data and the current step."""

    def __init__(self, config: DetectConfig, session: Session, scratch: Path):
        self.config, self.session, self.scratch = config, session, scratch
        self.rank_info, self.seed = session.rank_info, session.folder.seed
        train_split, self.val_split = (
            open_split(config.data, split, data_root(), scratch / split) for split in ("train", "val")
        )
        session.read_data(train_split.fingerprint, self.val_split.fingerprint)
        train_split, self.val_split = (
            data.of_classes(split, config.detector.classes) for split in (train_split, self.val_split)
        )
        self.images = data.with_objects(data.register("jigclu_train", train_split, scratch))
        self.val_images = data.register("jigclu_val", self.val_split, scratch)
        self.count = expected_images(config.data, "train")  # the schedule counts in these
        self.cfg = detectron2_config(config, self.count, len(self.val_split.categories), self.rank_info.device.type)
        self.iterations = self.cfg.SOLVER.MAX_ITER
        self.keys = data.order(
            self.images, self.seed, self.iterations + config.precise_bn, self.cfg.SOLVER.IMS_PER_BATCH
        )
        broken = (session.restored or {}).get("unreadable", {})
        self.unreadable = {split: Unreadable(broken.get(split, [])) for split in ("train", "val")}
        self.workers = loader_workers(config.runtime, self.rank_info.device)
        self.model = self._network()
        self.network = distribute(self.model, self.rank_info)
        batches = self._batches(session.step, self.iterations)
        self.training = train.Training(
            self.cfg, session, self.network, build_optimizer(self.cfg, self.model), batches, self.count
        )
        passes = math.ceil(self.iterations * self.cfg.SOLVER.IMS_PER_BATCH / self.count)
        session.begin(passes, self.iterations, self._state)

    def _state(self) -> dict[str, Any]:
        broken = {split: unreadable.paths for split, unreadable in self.unreadable.items()}
        return {"network": self.model.state_dict(), "unreadable": broken, **self.training.state()}

    def _network(self) -> nn.Module:
        backbone = starting_backbone(
            self.config, self.session
        )  # also seeds torch, so that d2's initialisation depends on the seed
        model: nn.Module = build_model(self.cfg)
        load_backbone(model, backbone)
        self._freeze(model)
        self.session.restore(network=model)
        return model

    def _freeze(self, model: nn.Module) -> None:
        """Take the ResNet's statistics and freeze what `detector` says; a resumed attempt has them in its checkpoint."""
        detector, config, resnet = self.config.detector, self.config, model.get_submodule("backbone.bottom_up")
        if detector.frozen_bn:
            if not self.session.restored:
                with closing(self._batches(0, config.precise_bn)) as batches:
                    watched = self._watched(batches, "batch norm", config.precise_bn)
                    images = (model.preprocess_image(batch).tensor for batch in watched)  # type: ignore[operator]
                    precise_batch_norm(resnet, images, config.precise_bn, self.rank_info)
            FrozenBatchNorm2d.convert_frozen_batchnorm(resnet)
        resnet.freeze(detector.frozen_stages)  # type: ignore[operator]

    def _batches(self, start: int, end: int) -> Generator[Any, None, None]:
        keys, broken = self.keys[start:end], self.unreadable["train"]
        return data.train_batches(self.cfg, self.images, self.seed, keys, self.workers, self.rank_info, broken)

    def run(self) -> dict[str, Any]:
        session = self.session
        if session.step < self.iterations:
            with bfloat16(self.model.backbone, self.config.precision == "bfloat16"):
                self.training.run()
            session.save()  # the evaluation is long, so a stop may come during it
        scores = self._evaluate()
        if self.rank_info.is_main:
            keep_resampled(session.folder.path, scores.resampled)
        return session.finish(
            scores.metrics,
            **scores.uncertainties,
            images=len(self.images),
            val_images=len(self.val_images),
            categories=len(self.val_split.categories),
            iterations=self.iterations,
            unreadable=sorted(path for counted in self.unreadable.values() for path in counted.paths),
            lr=self.cfg.SOLVER.BASE_LR,
            detectron2=detectron2.__version__,
            supplied=compat.SUPPLIED,
        )

    def _evaluate(self) -> Scores:
        config, rank_info = self.config, self.rank_info
        with closing(self._batches(self.iterations, len(self.keys))) as batches:
            watched = self._watched(batches, "batch norm", config.precise_bn)
            precise_batch_norm(self.model, watched, config.precise_bn, rank_info)
        images = len(range(rank_info.rank, len(self.val_images), rank_info.world))
        broken = self.unreadable["val"]
        with closing(data.test_batches(self.cfg, self.val_images, self.workers, rank_info, broken)) as batches:
            # Several ranks may have different numbers of images and cannot agree on a stop: it waits until the job is done.
            watched = self._watched(batches, "evaluation", images, polled=rank_info.world == 1)
            scores = evaluate(self.model, Counted(watched, images), "jigclu_val", self.scratch)
        if rank_info.is_main:
            self._draw()
        return scores

    def _draw(self) -> None:
        names = {category["id"]: category["name"] for category in self.val_split.annotations["categories"]}
        boxes = json.loads((self.scratch / RESULTS).read_text(encoding="utf-8"))
        drawn = pictures.predictions(data.with_objects(self.val_images), boxes, names)
        save_image(drawn, self.session.folder.path / "figures" / "predictions.png")

    def _watched(self, batches: Iterator[Any], what: str, count: int, polled: bool = True) -> Iterator[Any]:
        """The same batches; before each one, poll for a stop signal, write a heartbeat and seed torch."""
        for number, batch in enumerate(batches):
            if polled and agree(int(interrupt.requested()), self.rank_info):
                if self.rank_info.is_main:
                    self.session.folder.set_status("interrupted", message=f"stopped in {what}")
                raise interrupt.Interrupted(f"stopped in {what}; the training is saved, {what} starts again on resume")
            if self.rank_info.is_main:
                self.session.folder.set_status("running", force=False, message=f"{what}: {number + 1} of {count}")
            train.seed_step(self.seed, self.iterations + number, self.rank_info.rank)
            yield batch


@contextmanager
def bfloat16(backbone: Any, wanted: bool) -> Iterator[None]:
    """If `wanted`, run `backbone` (ResNet and FPN) under autocast inside the context; its maps are returned in float32.

    Not the whole detector: ROIAlign takes boxes in its input's type, and bfloat16 would move their edges by a pixel.
    """
    plain = backbone.forward

    def forward(images: Tensor) -> dict[str, Tensor]:
        with torch.autocast(images.device.type, torch.bfloat16):
            maps = plain(images)
        return {level: map.float() for level, map in maps.items()}

    if wanted:
        backbone.forward = forward
    try:
        yield
    finally:
        if wanted:
            del backbone.forward


def load_backbone(model: nn.Module, backbone: Backbone) -> None:
    """Load the backbone's weights into the detector by exact name.

    Raises:
        ConfigError: a tensor is missing in one of the two.
    """
    weights = convert(backbone.weights())
    own = {key for key in model.state_dict() if key.startswith(PREFIX)}
    if missing := own ^ weights.keys():
        raise ConfigError(f"backbone and detector do not fit: {sorted(missing)[0]} is only in one of them")
    model.load_state_dict(weights, strict=False)
