"""Data sets in COCO's format: where the files are, whether they are complete, and the annotations of a part. No torch.

<root>/coco/{train2017,val2017}/*.jpg    <root>/coco/annotations/instances_{train,val}2017.json
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jigclu.config import ConfigError
from jigclu.config.detection import DetectionDataConfig, detection_spec
from jigclu.data.sources.base import SPLITS, Split
from jigclu.data.sources.coco_annotations import categories_of, compare, parse
from jigclu.data.sources.folder_index import SUMS, cached_digest, read_sums, require_separate, scan
from jigclu.data.sources.scenes import KINDS, VERSION, scene
from jigclu.data.sources.subsets import IncompleteDatasetError


@dataclass(frozen=True)
class DetectionSplit:
    """`annotations`: COCO's JSON object with only the images of this part; file names are below `folder`.

    `fingerprint`: first 16 hex digits of sha256; it changes with the images and with the annotations.
    """

    annotations: dict[str, Any]
    folder: Path
    fingerprint: str

    @property
    def categories(self) -> list[str]:
        """Names in the order of their ids, which is the order of a detector's outputs."""
        ordered = sorted(self.annotations["categories"], key=lambda category: category["id"])
        return [category["name"] for category in ordered]


def expected_images(data: DetectionDataConfig, split: Split) -> int:
    """How many images the config takes, from the data set's record: planning reads no data."""
    spec, count = detection_spec(data.name), _wanted(data, split)
    whole = spec.images[split]
    return count or whole if spec.drawn else min(count or whole, whole)


def _wanted(data: DetectionDataConfig, split: Split) -> int | None:
    return data.train_images if split == "train" else data.val_images


def check(data: DetectionDataConfig, root: Path, fresh: bool = False) -> None:
    """Raises ConfigError (one line: which folder was searched, how to get the data) unless both splits are complete.

    Also raises it if the config asks for more images than there are, or the evaluation could not use the annotations.
    `fresh`: no listing of photographs comes from the cache.
    """
    if not detection_spec(data.name).drawn:
        sizes = _sizes(data, root, fresh)
        train, val = (root / "coco" / f"{split}2017" for split in SPLITS)
        try:
            require_separate(train, sizes["train"], val, sizes["val"])
        except IncompleteDatasetError as error:
            raise _incomplete(data, error) from None
        _check_categories(data, root)


def _check_categories(data: DetectionDataConfig, root: Path) -> None:
    try:
        train, val = (categories_of(_annotations(root, split)) for split in SPLITS)
        compare(train, val, root / "coco" / "annotations")
    except IncompleteDatasetError as error:
        raise _incomplete(data, error) from None


def _sizes(data: DetectionDataConfig, root: Path, fresh: bool = False) -> dict[Split, dict[str, int]]:
    """For every split: name -> bytes of its photographs. Raises ConfigError as `check` does."""
    whole = detection_spec(data.name).images
    for split in SPLITS:
        if (_wanted(data, split) or 0) > whole[split]:
            raise ConfigError(
                f"data.{split}_images={_wanted(data, split)}: {data.name} has {whole[split]} "
                f"(leave {split}_images out to use them all)"
            )
    try:
        return {split: _files(data, split, root, fresh) for split in SPLITS}
    except IncompleteDatasetError as error:
        raise _incomplete(data, error) from None


def _incomplete(data: DetectionDataConfig, error: IncompleteDatasetError) -> ConfigError:
    how = detection_spec(data.name).how_to_get
    return ConfigError(f"data set {data.name}: looked in {error.path.absolute()}: {error}; {how}")


def verified(data: DetectionDataConfig) -> str:
    """What a data set that `check` passed was checked against, in words."""
    spec = detection_spec(data.name)
    if spec.drawn:
        return "drawn when needed, no files"
    return "the expected numbers of photographs" + (f", annotations verified against {SUMS}" if spec.sealed else "")


def open_split(data: DetectionDataConfig, split: Split, root: Path, drawn: Path) -> DetectionSplit:
    """The images that the config takes of a split, with their boxes. Raises ConfigError if the data set is incomplete.

    Scenes are drawn into the folder `drawn`.
    """
    if detection_spec(data.name).drawn:
        return draw_scenes(drawn, split, expected_images(data, split), data.size)
    sizes = _sizes(data, root)[split]
    _check_categories(data, root)
    text = _annotations(root, split).read_bytes()
    chosen = _chosen(data, split, sizes)
    try:
        values = _parsed(text, chosen, _annotations(root, split))
    except IncompleteDatasetError as error:
        raise _incomplete(data, error) from None
    found = _fingerprint(_facts(hashlib.sha256(text).hexdigest(), chosen, sizes))
    return DetectionSplit(values, root / "coco" / f"{split}2017", found)


def fingerprint(data: DetectionDataConfig, split: Split, root: Path) -> str:
    """Of the split that `open_split` returns; draws and parses nothing. Raises ConfigError if the data set is incomplete."""
    if detection_spec(data.name).drawn:
        return _fingerprint(_scene_facts(split, expected_images(data, split), data.size))
    sizes = _sizes(data, root)[split]
    return _fingerprint(_facts(cached_digest(_annotations(root, split)), _chosen(data, split, sizes), sizes))


def _chosen(data: DetectionDataConfig, split: Split, names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[: expected_images(data, split)]


def _facts(digest: str, chosen: list[str], sizes: dict[str, int]) -> list[str]:
    return [digest, *(f"{name} {sizes[name]}" for name in sorted(chosen))]


def _scene_facts(split: Split, count: int, size: int) -> list[str]:
    return [f"coco_scenes {VERSION} {split} {count} {size}"]


def _fingerprint(facts: list[str]) -> str:
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _parsed(text: bytes, names: list[str], path: Path) -> dict[str, Any]:
    """The annotations of those photographs. Raises IncompleteDatasetError if the file is cut short or another set's."""
    values = part(parse(text, path), set(names))
    if len(values["images"]) != len(names):
        raise IncompleteDatasetError(path, f"it lists {len(values['images'])} of the {len(names)} photographs")
    return values


def part(values: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """COCO's object with only the images of those file names, sorted by id, and their boxes; every category stays.

    Outlines (`segmentation`) are left out: they are nine tenths of COCO's file, which every rank reads and writes.
    """
    images = sorted((image for image in values["images"] if image["file_name"] in names), key=lambda image: image["id"])
    ids = {image["id"] for image in images}
    annotations = [
        {key: value for key, value in box.items() if key != "segmentation"}
        for box in values["annotations"]
        if box["image_id"] in ids
    ]
    return {"images": images, "annotations": annotations, "categories": values["categories"]}


def _annotations(root: Path, split: Split) -> Path:
    return root / "coco" / "annotations" / f"instances_{split}2017.json"


def _files(data: DetectionDataConfig, split: Split, root: Path, fresh: bool) -> dict[str, int]:
    """Name -> bytes of a split's photographs, all of them. Raises IncompleteDatasetError."""
    folder, annotations = root / "coco" / f"{split}2017", _annotations(root, split)
    if not folder.is_dir():
        raise IncompleteDatasetError(folder, "there is no such folder")
    listing = scan(folder.parent, [folder.name], fresh)[folder.name]
    sizes = {name: size for name, size in listing if name.endswith(".jpg")}
    spec = detection_spec(data.name)
    if len(sizes) != spec.images[split]:
        raise IncompleteDatasetError(folder, f"{len(sizes)} photographs, not {spec.images[split]}")
    if not annotations.is_file():
        raise IncompleteDatasetError(annotations, "there is no such file")
    if spec.sealed:
        sums = root / "coco" / SUMS
        if (listed := read_sums(sums)) is None:
            raise IncompleteDatasetError(sums, "there is no such file")
        if listed.get(f"{annotations.parent.name}/{annotations.name}") != cached_digest(annotations):
            raise IncompleteDatasetError(annotations, f"it is not the file that {SUMS} lists")
    return sizes


def draw_scenes(folder: Path, split: Split, count: int, size: int) -> DetectionSplit:
    """`count` procedural scenes of `size` pixels as PNG files below `folder`, every object a box of its kind.

    An object's area is its box's; COCO's small, medium and large refer to that area here.
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
    return DetectionSplit(values, folder, _fingerprint(_scene_facts(split, count, size)))


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
