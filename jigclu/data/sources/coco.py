"""Data sets in COCO's format: where the files lie, whether they are whole, and the annotations of a part of them. No torch.

<root>/coco/{train2017,val2017}/*.jpg    <root>/coco/annotations/instances_{train,val}2017.json
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jigclu.config import ConfigError
from jigclu.config.detection import DetectionDataConfig
from jigclu.data.sources.base import SPLITS, Split
from jigclu.data.sources.scenes import KINDS, VERSION, scene
from jigclu.data.sources.subsets import IncompleteDatasetError

# Photographs of each split: COCO 2017, and the subset that the tests and scale `mini` have under the same names.
IMAGES: dict[str, dict[str, int]] = {
    "coco": {"train": 118_287, "val": 5_000},
    "coco_mini": {"train": 343, "val": 206},
    "coco_scenes": {"train": 400, "val": 200},  # where the config says no number
}
SUMS = "SHA256SUMS"  # of the subset, beside its folders
_GET = (
    "get COCO 2017 (train, val, annotations) from cocodataset.org as coco/{train2017,val2017}/*.jpg and "
    "coco/annotations/instances_{train,val}2017.json, and set JIGCLU_DATA to the folder around coco/"
)
HOW = {
    "coco": _GET,
    "coco_mini": f"it is a part of COCO that is not to be had elsewhere: take --scale smoke; for all of COCO (coco) {_GET}",
}


@dataclass(frozen=True)
class DetectionSplit:
    """`annotations`: COCO's JSON object with the images of this part alone; file names are below `folder`.

    `fingerprint`: first 16 hex of sha256 over what differs where the images or the annotations do.
    """

    annotations: dict[str, Any]
    folder: Path
    fingerprint: str

    @property
    def categories(self) -> list[str]:
        """In the order of their ids, which is the order of a detector's outputs."""
        return [one["name"] for one in sorted(self.annotations["categories"], key=lambda one: one["id"])]


def expected_images(data: DetectionDataConfig, split: Split) -> int:
    """How many images the config takes, by the numbers stated here: planning touches no data."""
    wanted, whole = _wanted(data, split), IMAGES[data.name][split]
    if data.name == "coco_scenes":  # the number asked for is the whole set
        return wanted or whole
    return min(wanted or whole, whole)


def _wanted(data: DetectionDataConfig, split: Split) -> int | None:
    return data.train_images if split == "train" else data.val_images


def check(data: DetectionDataConfig, root: Path) -> None:
    """Raises ConfigError (one line: which folder was looked in, how to get it) unless both splits are whole.

    So it does where the config wants more images than there are.
    """
    if data.name != "coco_scenes":
        _sizes(data, root)


def _sizes(data: DetectionDataConfig, root: Path) -> dict[Split, dict[str, int]]:
    """Of every split name -> bytes of its photographs. Raises ConfigError as `check` does."""
    for split in SPLITS:
        if (_wanted(data, split) or 0) > IMAGES[data.name][split]:
            raise ConfigError(
                f"data.{split}_images={_wanted(data, split)}: {data.name} has {IMAGES[data.name][split]} "
                f"(leave {split}_images out to use every one)"
            )
    try:
        return {split: _files(data, split, root) for split in SPLITS}
    except IncompleteDatasetError as error:
        raise _refusal(data, error) from None


def _refusal(data: DetectionDataConfig, error: IncompleteDatasetError) -> ConfigError:
    return ConfigError(f"data set {data.name}: looked in {error.where.absolute()}: {error}; {HOW[data.name]}")


def verified(data: DetectionDataConfig, root: Path) -> str:
    if data.name == "coco_scenes":
        return "drawn when needed, no files"
    return "numbers of photographs as they must be" + (f", annotations by {SUMS}" if data.name == "coco_mini" else "")


def open_split(data: DetectionDataConfig, split: Split, root: Path, drawn: Path) -> DetectionSplit:
    """The images that the config takes of a split, with their boxes. Raises ConfigError where the data set is not whole.

    Scenes are drawn into `drawn`, a folder of the caller's.
    """
    if data.name == "coco_scenes":
        return draw_scenes(drawn, split, expected_images(data, split), data.size)
    sizes = _sizes(data, root)[split]
    text = _annotations(root, split).read_bytes()
    chosen = sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest())[: expected_images(data, split)]
    try:
        values = _parsed(text, chosen, _annotations(root, split))
    except IncompleteDatasetError as error:
        raise _refusal(data, error) from None
    facts = [hashlib.sha256(text).hexdigest(), *(f"{name} {sizes[name]}" for name in sorted(chosen))]
    return DetectionSplit(values, root / "coco" / f"{split}2017", _fingerprint(facts))


def _fingerprint(facts: list[str]) -> str:
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _parsed(text: bytes, names: list[str], path: Path) -> dict[str, Any]:
    """What the annotations read from `path` say of those photographs. Raises Incomplete (cut short, of another set)."""
    try:
        values = part(json.loads(text), set(names))
    except (ValueError, KeyError, TypeError) as error:
        raise IncompleteDatasetError(
            path, f"these are no annotations of COCO's ({type(error).__name__}: {error})"
        ) from None
    if len(values["images"]) != len(names):
        raise IncompleteDatasetError(path, f"it knows {len(values['images'])} of {len(names)} photographs")
    return values


def part(values: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """COCO's object with the images of those file names, by id, and the boxes annotated on them; every category stays.

    Outlines (`segmentation`) are left out: they are nine tenths of COCO's file, which every rank reads and writes.
    """
    images = sorted((one for one in values["images"] if one["file_name"] in names), key=lambda one: one["id"])
    ids = {one["id"] for one in images}
    annotations = [
        {key: value for key, value in one.items() if key != "segmentation"}
        for one in values["annotations"]
        if one["image_id"] in ids
    ]
    return {"images": images, "annotations": annotations, "categories": values["categories"]}


def _annotations(root: Path, split: Split) -> Path:
    return root / "coco" / "annotations" / f"instances_{split}2017.json"


def _files(data: DetectionDataConfig, split: Split, root: Path) -> dict[str, int]:
    """Name -> bytes of a split's photographs, all of them. Raises Incomplete."""
    folder, annotations = root / "coco" / f"{split}2017", _annotations(root, split)
    if not folder.is_dir():
        raise IncompleteDatasetError(folder, "there is no such folder")
    photographs = (entry for entry in os.scandir(folder) if entry.name.endswith(".jpg") and entry.is_file())
    sizes = {entry.name: entry.stat().st_size for entry in photographs}
    if len(sizes) != IMAGES[data.name][split]:
        raise IncompleteDatasetError(folder, f"{len(sizes)} photographs, not {IMAGES[data.name][split]}")
    if not annotations.is_file():
        raise IncompleteDatasetError(annotations, "there is no such file")
    if data.name == "coco_mini" and _listed_digest(root / "coco" / SUMS, annotations) != _digest(annotations):
        raise IncompleteDatasetError(annotations, f"it is not the file that {SUMS} lists")
    return sizes


def _listed_digest(sums: Path, path: Path) -> str:
    try:
        lines = sums.read_text().splitlines()
    except OSError:
        raise IncompleteDatasetError(sums, "there is no such file") from None
    name = f"{path.parent.name}/{path.name}"
    return next((line.split()[0] for line in lines if line.endswith(f"  {name}")), "")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def draw_scenes(folder: Path, split: Split, count: int, size: int) -> DetectionSplit:
    """`count` procedural scenes of `size` pixels as PNG files below `folder`, every object a box of its kind.

    An object's area is its box's: that is what COCO's small, medium and large go by here.
    """
    from PIL import Image

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels, _, boxes, kinds = scene(index, split, size)
        name = f"{split}-{index:06d}.png"
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / name, compress_level=1)
        images.append({"id": index + 1, "file_name": name, "width": size, "height": size})
        annotations += _scene_annotations(index + 1, len(annotations) + 1, boxes.tolist(), kinds.tolist())
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(KINDS)]
    values = {"images": images, "annotations": annotations, "categories": categories}
    return DetectionSplit(values, folder, _fingerprint([f"coco_scenes {VERSION} {split} {count} {size}"]))


def _scene_annotations(image: int, first: int, boxes: list[list[float]], kinds: list[int]) -> Iterator[dict[str, Any]]:
    for number, ((left, upper, right, lower), kind) in enumerate(zip(boxes, kinds, strict=True), first):
        width, height = right - left, lower - upper
        yield {
            "id": number,
            "image_id": image,
            "category_id": kind + 1,
            "bbox": [left, upper, width, height],
            "area": width * height,
            "iscrowd": 0,
        }
