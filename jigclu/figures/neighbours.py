"""Figures of an evaluation: accuracy by class, and the nearest neighbours of a few images."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import make_grid, save_image

from jigclu.data.canvases import CanvasDataset
from jigclu.job_folder import JobFolder
from jigclu.resample import crop_resize

log = logging.getLogger("jigclu")

RIGHT, WRONG = (0.0, 0.62, 0.45), (0.84, 0.37, 0.0)  # Okabe and Ito's bluish green and vermilion
QUERIES, NEIGHBOURS, SIDE = 8, 7, 96


def draw_evaluation(
    folder: JobFolder,
    dataset: CanvasDataset,
    counts: Tensor,
    features: Tensor | None = None,
    labels: Tensor | None = None,
) -> None:
    """Write per_class.csv and, with features, neighbours.png. A failure is logged: a job must not be lost over a figure."""
    figures = folder.path / "figures"
    try:
        if counts.sum():  # zero after resuming an older checkpoint, which has no counts
            write_classes(figures / "per_class.csv", dataset.classes, counts)
        if features is not None and labels is not None:
            neighbours(figures / "neighbours.png", dataset, features, labels)
    except Exception as error:
        log.warning("the evaluation's figures were not drawn: %s", error)


def write_classes(path: Path, classes: list[str], counts: Tensor) -> None:
    """`per_class.csv`: a line per class with its number of validation images and its top-1 in percent. counts: (2, classes)."""
    with open(path, "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["class", "images", "top1"])
        for name, right, images in zip(classes, *counts.tolist(), strict=True):
            table.writerow([name, images, f"{100 * right / images:.2f}" if images else ""])


@torch.no_grad()
def neighbours(path: Path, dataset: CanvasDataset, features: Tensor, labels: Tensor) -> None:
    """`neighbours.png`: a row per query with the images nearest to it by cosine, framed by whether their class is the same.

    dataset: the split; features (n, dim) and labels (n,) of all its images, in its order. The queries are spaced evenly over it.
    """
    if len(features) != len(dataset):  # some images were unreadable, so rows and images no longer match
        return
    queries = torch.linspace(0, len(features) - 1, min(QUERIES, len(features))).round().long()
    unit = F.normalize(features.float(), dim=1)
    similar = unit[queries.to(unit.device)] @ unit.T
    similar[torch.arange(len(queries)), queries.to(unit.device)] = -torch.inf
    nearest = similar.topk(min(NEIGHBOURS, len(features) - 1), dim=1).indices.cpu()
    shown = torch.cat((queries[:, None], nearest), 1)
    pictures = torch.stack([picture(dataset, index) for index in shown.flatten().tolist()]).unflatten(0, shown.shape)
    labels = labels.cpu()
    same = labels[nearest] == labels[queries][:, None]
    for row, column in torch.cartesian_prod(torch.arange(len(queries)), torch.arange(nearest.shape[1])).tolist():
        _frame(pictures[row, column + 1], RIGHT if same[row, column] else WRONG)
    save_image(make_grid(pictures.flatten(0, 1), nrow=shown.shape[1], padding=4, pad_value=1), path)


def picture(dataset: CanvasDataset, index: int) -> Tensor:
    """(3, SIDE, SIDE) in [0, 1]: the image as a square."""
    sample = dataset[index]
    crop = torch.tensor([[0, 0, sample.width, sample.height]])
    return crop_resize(sample.canvas[None], crop, SIDE)[0].clamp(0, 1)


def _frame(image: Tensor, colour: tuple[float, float, float], line: int = 4) -> None:
    ink = torch.tensor(colour)[:, None, None]
    for edge in (image[:, :line], image[:, -line:], image[:, :, :line], image[:, :, -line:]):
        edge.copy_(ink.expand_as(edge))
