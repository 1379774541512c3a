"""Dense objectness probe: in which cells of the frozen maps is an object, in which a person? One 1x1 convolution says it.

Not in the paper. Table 4's reason is that the features describe instances (§4.3); this asks them directly, without a detector. The
convolution is fitted in closed form (ridge regression on standardised features), so there is no rate and no length to choose.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jigclu import augment
from jigclu.config import DenseConfig
from jigclu.data.catalog import data_root
from jigclu.data.loader import Unreadable, loaded, loader_workers
from jigclu.data.sources.coco import DetectionSplit, open_split
from jigclu.data.sources.decoding import decode
from jigclu.evaluation.bootstrap import (
    Array,
    Ranked,
    average_precision,
    draw_weights,
    keep_resampled,
    resamples,
    uncertainties,
)
from jigclu.network import Backbone
from jigclu.stages.encoders import require_one_process, starting_backbone
from jigclu.training import interrupt
from jigclu.training.session import Session, TrainingError

log = logging.getLogger("jigclu")
TARGETS = ("object", "person")
STRIDES = {"layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}
HELD_OUT, MOST_HELD_OUT = 10, 500  # every tenth photograph chooses the penalty, at most 500 of them


def run(config: DenseConfig, folder: str | Path) -> dict[str, Any]:
    """Fit the convolution on the train photographs and score the cells of the val photographs.

    Args:
        config: the resolved config.
        folder: the job folder, whose upstream is a pretraining, or none for the floor. An interrupted attempt starts over.

    Returns:
        The content of result.json. Metrics, in percent: object_ap and person_ap, average precision over cells (COCO's, at 101
        recalls), and object_chance and person_chance, the share of such cells, which is the AP of a random score. Those of people
        only if the data set has them. `half_widths` and `standard_errors`: from resampling the val photographs.

    Raises:
        ConfigError: several ranks were started, or the data set is incomplete.
        interrupt.Interrupted: a stop was requested.
        session.TrainingError: the features are not finite.
        DataError: too many photographs are unreadable.
    """
    session = Session(folder, config.runtime)
    session.read_config(config)
    require_one_process(session)
    with tempfile.TemporaryDirectory(prefix="jigclu-dense-") as scratch:
        train, val = (open_split(config.data, split, data_root(), Path(scratch) / split) for split in ("train", "val"))
        session.read_data(train.fingerprint, val.fingerprint)
        return _Probe(config, session).run(train, val)


class Cells(NamedTuple):
    """The cells of n photographs."""

    features: Tensor  # (cells, C) float32
    targets: Tensor  # (cells, 2) bool: in any box, in a person's
    image: Tensor  # (cells,) int64: index of the photograph


class Photograph(NamedTuple):
    """`path` alone if it could not be read."""

    path: str
    number: int
    canvas: Tensor | None = None  # (3, S, S) float32, normalised; zero below and right of the photograph
    targets: Tensor | None = None  # (cells, 2) bool
    counted: Tensor | None = None  # (cells,) bool: in the photograph, and not only in a crowd


class Photographs:
    """A split by index: pixels, and which cells of `stride` pixels have their centre in a box."""

    def __init__(self, split: DetectionSplit, size: int, stride: int):
        self.folder, self.images = split.folder, split.annotations["images"]
        self.size, self.stride, self.side = size, stride, -(-size // stride)
        self.people = {kind["id"] for kind in split.annotations["categories"] if kind["name"] == "person"}
        self.boxes: dict[int, list[dict[str, Any]]] = {}
        for box in split.annotations["annotations"]:
            self.boxes.setdefault(box["image_id"], []).append(box)

    def __len__(self) -> int:  # noqa: D105
        return len(self.images)

    def __getitem__(self, index: int) -> Photograph:
        """Read the photograph `index`."""
        image = self.images[index]
        path = self.folder / image["file_name"]
        try:
            pixels = torch.from_numpy(decode(path, self.size))
        except (OSError, SyntaxError, ValueError):  # SyntaxError: a broken PNG
            return Photograph(str(path), index)
        height, width = pixels.shape[1:]
        canvas = torch.zeros(3, self.size, self.size)
        canvas[:, :height, :width] = augment.normalise(pixels[None].float() / 255)[0]
        centre = (torch.arange(self.side) + 0.5) * self.stride
        inside = {name: torch.zeros(self.side, self.side, dtype=torch.bool) for name in (*TARGETS, "crowd")}
        for box in self.boxes.get(image["id"], ()):
            left, upper, across, down = box["bbox"]
            columns = _between(centre * (image["width"] / width), left, left + across)
            cells = _between(centre * (image["height"] / height), upper, upper + down)[:, None] & columns
            if box["iscrowd"]:
                inside["crowd"] |= cells
                continue
            inside["object"] |= cells
            if box["category_id"] in self.people:
                inside["person"] |= cells
        seen = (centre < height)[:, None] & (centre < width) & ~(inside["crowd"] & ~inside["object"])
        targets = torch.stack([inside[name].flatten() for name in TARGETS], dim=1)
        return Photograph(str(path), index, canvas, targets, seen.flatten())


def _between(points: Tensor, low: float, high: float) -> Tensor:
    return (points >= low) & (points < high)


class Sums:
    """What ridge regression needs of the features x and targets y, in float64: their number, sums and products."""

    def __init__(self) -> None:
        self.count = 0
        self.parts: list[Tensor] = []

    def add(self, cells: Cells) -> None:
        """Add a batch; products are taken in float32."""
        x, y = cells.features, cells.targets.to(cells.features.dtype)
        parts = [part.double() for part in (x.sum(0), y.sum(0), x.T @ x, x.T @ y)]
        self.parts = [old + new for old, new in zip(self.parts, parts, strict=True)] if self.parts else parts
        self.count += len(x)

    def __add__(self, other: Sums) -> Sums:
        """Return the sums over the cells of both."""
        both = Sums()
        both.count = self.count + other.count
        pairs = zip(self.parts, other.parts, strict=True) if self.parts and other.parts else ()
        both.parts = [one + two for one, two in pairs] or self.parts or other.parts
        return both

    def fit(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Weights (C, targets) and offsets (targets,) on the features as they come; scores are x @ weights + offsets."""
        mean_x, mean_y = self.parts[0] / self.count, self.parts[1] / self.count
        covariance = self.parts[2] / self.count - torch.outer(mean_x, mean_x)
        deviation = covariance.diagonal().clamp(min=0).sqrt()
        scale = torch.where(
            deviation > 1e-6 * (1 + mean_x.abs()), 1 / deviation, 0.0
        )  # a constant channel says nothing
        correlation = covariance * torch.outer(scale, scale) + penalty * torch.eye(len(scale), device=scale.device)
        right = scale[:, None] * (self.parts[3] / self.count - torch.outer(mean_x, mean_y))
        weights = scale[:, None] * torch.linalg.solve(correlation, right)
        return weights.float(), (mean_y - mean_x @ weights).float()


class _Probe:
    """The frozen backbone and the fit."""

    def __init__(self, config: DenseConfig, session: Session):
        self.config, self.session, self.device = config, session, session.rank_info.device
        backbone = starting_backbone(config, session).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.backbone: Backbone = backbone.eval().requires_grad_(False)
        self.stride = min(STRIDES[layer] for layer in config.layers)
        self.unreadable: list[str] = []

    def run(self, train: DetectionSplit, val: DetectionSplit) -> dict[str, Any]:
        seen, asked, held = Sums(), Sums(), list[Cells]()
        for cells in self._cells(train, "train"):
            apart = (cells.image % HELD_OUT == HELD_OUT - 1) & (cells.image < HELD_OUT * MOST_HELD_OUT)
            kept, chosen = (Cells(*(part[mask] for part in cells)) for mask in (~apart, apart))
            seen.add(kept)
            asked.add(chosen)
            held.append(chosen)
        penalties = self._choose(seen, held)
        whole = seen + asked
        fits = [whole.fit(penalty) for penalty in penalties]
        weights = torch.stack([fit[0][:, at] for at, fit in enumerate(fits)], dim=1)
        offsets = torch.stack([fit[1][at] for at, fit in enumerate(fits)])
        scored = [(cells.features @ weights + offsets, cells.targets, cells.image) for cells in self._cells(val, "val")]
        scores, targets, image = (torch.cat(parts).cpu().numpy() for parts in zip(*scored, strict=True))
        images = len(val.annotations["images"])
        metrics, drawn = _measured(scores, targets, image, images)
        keep_resampled(self.session.folder.path, drawn)
        chosen_penalties = dict(zip(TARGETS, penalties, strict=True))
        counts = {"images": len(train.annotations["images"]), "val_images": images, "cells": len(scores)}
        return self.session.finish(
            metrics,
            **uncertainties(drawn),
            resamples=resamples(images),
            penalties={name: penalty for name, penalty in chosen_penalties.items() if f"{name}_ap" in metrics},
            unreadable=sorted(self.unreadable),
            **counts,
        )

    def _choose(self, seen: Sums, held: list[Cells]) -> list[float]:
        """For each target the penalty with the best AP on the held-out photographs; the largest if they have no such cell."""
        cells = Cells(*(torch.cat(parts) for parts in zip(*held, strict=True)))
        best = [(-1.0, max(self.config.penalties)) for _ in TARGETS]
        for penalty in self.config.penalties:
            weights, offsets = seen.fit(penalty)
            scores = (cells.features @ weights + offsets).cpu().numpy()
            for at, target in enumerate(cells.targets.cpu().numpy().T):
                ap = _ap(scores[:, at], target, np.zeros(len(target), np.int64), np.ones((1, 1), np.int16))[0]
                best[at] = max(best[at], (float(ap), penalty)) if np.isfinite(ap) else best[at]
        return [penalty for _, penalty in best]

    @torch.no_grad()
    def _cells(self, split: DetectionSplit, what: str) -> Iterator[Cells]:
        """The counted cells of every batch of photographs."""
        photographs = Photographs(split, self.config.image_size, self.stride)
        size, count = self.config.batch_size, len(photographs)
        groups = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
        unreadable, workers = Unreadable(), loader_workers(self.config.runtime, self.device)
        with closing(loaded(photographs, groups, workers, list)) as stream:
            for number, batch in enumerate(stream):
                self._progress(f"{what}: {number * size} of {count} photographs")
                for photograph in batch:
                    if photograph.canvas is None:
                        unreadable.report(photograph.path, count)
                readable = [photograph for photograph in batch if photograph.canvas is not None]
                if readable:
                    yield self._features(readable)
        self.unreadable += unreadable.paths

    def _features(self, batch: list[Photograph]) -> Cells:
        images = torch.stack([photograph.canvas for photograph in batch]).to(self.device)  # type: ignore[misc]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            maps = self._maps(images.contiguous(memory_format=torch.channels_last))
        counted = torch.stack([photograph.counted for photograph in batch]).to(self.device)  # type: ignore[misc]
        targets = torch.stack([photograph.targets for photograph in batch]).to(self.device)  # type: ignore[misc]
        index = torch.tensor([photograph.number for photograph in batch], device=self.device)
        features = maps.flatten(2).transpose(1, 2)[counted].float()
        if not features.isfinite().all():
            raise TrainingError("the encoder gives features that are not finite")
        return Cells(features, targets[counted], index[:, None].expand_as(counted)[counted])

    def _maps(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) -> the maps of all layers at the finest one's cells, (N, C, side, side)."""
        net, side = self.backbone.resnet, -(-images.shape[-1] // self.stride)
        x, found = net.maxpool(net.relu(net.bn1(net.conv1(images)))), []
        for layer, stride in STRIDES.items():
            x = getattr(net, layer)(x)
            if layer in self.config.layers:
                found.append(F.interpolate(x.float(), scale_factor=stride // self.stride)[:, :, :side, :side])
        return torch.cat(found, dim=1)

    def _progress(self, text: str) -> None:
        if interrupt.requested():
            self.session.folder.set_status("interrupted", message=f"stopped at {text}")
            raise interrupt.Interrupted(f"stopped at {text}; it starts over on resume")
        self.session.folder.set_status("running", force=False, message=text)


def _ap(scores: Array, truth: Array, image: Array, weights: Array) -> Array:
    """(resamples,) average precision in percent of cells; `image`: the photograph of each."""
    order = np.argsort(-scores, kind="stable")
    objects = np.bincount(image[truth], minlength=weights.shape[1])
    return average_precision(Ranked(image[order], truth[order], np.ones(len(order), bool), objects), weights)


def _measured(scores: Array, targets: Array, image: Array, images: int) -> tuple[dict[str, float], dict[str, Array]]:
    """The metrics, and the AP of every resample of the photographs."""
    weights = draw_weights(images)
    metrics: dict[str, float] = {}
    drawn: dict[str, Array] = {}
    for at, name in enumerate(TARGETS):
        if not targets[:, at].any():
            continue
        ap = _ap(scores[:, at], targets[:, at], image, np.ones((1, images), np.int16))[0]
        metrics |= {f"{name}_ap": float(ap), f"{name}_chance": 100 * float(targets[:, at].mean())}
        drawn[f"{name}_ap"] = _ap(scores[:, at], targets[:, at], image, weights)
    return metrics, drawn
