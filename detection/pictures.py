"""A figure of a detector's boxes beside the annotated ones, on a few photographs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

PHOTOGRAPHS, WIDTH, GAP = 4, 240, 6
TRUE, FOUND = "#009E73", "#D55E00"  # Okabe and Ito's green and vermilion


def predictions(images: list[dict[str, Any]], boxes: list[dict[str, Any]], names: dict[int, str]) -> Tensor:
    """(3, h, w) in [0, 1]: a row per photograph, annotated boxes on the left, equally many of the best scored ones on the right.

    images: Detectron2's dicts; boxes: COCO's results; names: category id -> name. There is no score threshold: one that suits
    one detector would hide everything that another finds.
    """
    return torch.cat([_row(image, boxes, names) for image in images[:PHOTOGRAPHS]], dim=1)


def _row(image: dict[str, Any], boxes: list[dict[str, Any]], names: dict[int, str]) -> Tensor:
    with Image.open(image["file_name"]) as file:
        pixels = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
    scale = WIDTH / pixels.shape[2]
    small = F.interpolate(pixels[None].float(), size=(round(pixels.shape[1] * scale), WIDTH), mode="area")[0].byte()
    ordered = [names[key] for key in sorted(names)]
    true = [(box["bbox"], ordered[box["category_id"]]) for box in image["annotations"] if not box.get("iscrowd", 0)]
    ranked = sorted((box for box in boxes if box["image_id"] == image["image_id"]), key=lambda box: -box["score"])
    found = [(box["bbox"], f"{names[box['category_id']]} {box['score']:.2f}") for box in ranked[: len(true)]]
    left, right = _boxed(small, true, scale, TRUE), _boxed(small, found, scale, FOUND)
    return F.pad(torch.cat((left, F.pad(right, (GAP, 0, 0, 0), value=1.0)), 2), (0, 0, 0, GAP), value=1.0)


def _boxed(pixels: Tensor, boxes: list[tuple[list[float], str]], scale: float, colour: str) -> Tensor:
    if not boxes:
        return pixels / 255
    corners = torch.tensor([box for box, _ in boxes]) * scale
    corners[:, 2:] += corners[:, :2]
    corners[:, 0::2].clamp_(0, pixels.shape[2] - 1)
    corners[:, 1::2].clamp_(0, pixels.shape[1] - 1)
    return draw_bounding_boxes(pixels, corners, [word for _, word in boxes], colors=colour, width=2) / 255
