"""What the evaluation needs of annotations in COCO's format, checked before the training instead of after it. No torch."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any

from jigclu.data.sources.folder_index import cache_path, file_state, keep, settled
from jigclu.data.sources.subsets import IncompleteDatasetError
from jigclu.files import is_finite

log = logging.getLogger("jigclu")
VERSION = 3  # of the checks below: raise it when they change, so that a file that passed older ones is read again
LARGEST = 1e10  # pycocotools takes no larger area, and ids are kept in 64 bits
Categories = dict[int, str]


def checked(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """COCO's JSON object with what pycocotools needs: its checks are silent, or come after the training.

    Box ids below 1 are renumbered, because pycocotools takes a match with box 0 for no match; boxes without area, which
    COCO itself has, are left out, as Detectron2 does in training.

    Raises:
        IncompleteDatasetError: the first entry that is wrong, by its number or id.
    """
    images, boxes, categories = (values[key] for key in ("images", "annotations", "categories"))
    for what, entries in (("image", images), ("category", categories), ("annotation", boxes)):
        _check(
            path, what, entries, lambda entry: "" if _whole(entry.get("id")) else f"id {entry.get('id')!r}: no integer"
        )
        _unique(path, what, [entry["id"] for entry in entries])
    _unique(path, "image", [image["file_name"] for image in images], "file name")
    _check(path, "image", images, _image_fault)
    _unique(path, "category", [category["name"] for category in categories], "name")
    _check(path, "category", categories, lambda entry: "" if _is_name(entry["name"]) else "its name must be a text")
    known, kinds = {image["id"]: image for image in images}, {category["id"] for category in categories}
    _check(path, "annotation", boxes, lambda box: _box_fault(box, known, kinds))
    kept = [box for box in boxes if box["bbox"][2] > 0 and box["bbox"][3] > 0]
    if not any(box["iscrowd"] == 0 for box in kept):
        raise IncompleteDatasetError(path, "it has no box of a single object, so there is nothing to learn or to score")
    if len(kept) < len(boxes):
        log.info("%s: %d boxes have no area and are left out", path, len(boxes) - len(kept))
    if min((box["id"] for box in kept), default=1) < 1:
        kept = [{**box, "id": number} for number, box in enumerate(kept, 1)]
    return {**values, "annotations": kept}


def _check(path: Path, what: str, entries: Iterable[Any], fault: Callable[[Any], str]) -> None:
    for number, entry in enumerate(entries, 1):
        if found := fault(entry):
            raise IncompleteDatasetError(path, f"{what} {entry.get('id', f'number {number}')!r}: {found}")


def _unique(path: Path, what: str, names: list[Any], kind: str = "id") -> None:
    if len(set(names)) < len(names):
        seen: set[Any] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise IncompleteDatasetError(path, f"two {what} entries have the {kind} {twice!r}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _number(value: Any) -> bool:
    return is_finite(value) and abs(value) < LARGEST


def _image_fault(image: dict[str, Any]) -> str:
    for key in ("width", "height"):
        if not _whole(image.get(key)) or image[key] < 1:
            return f"{key} must be a number of pixels, not {image.get(key)!r}"
    return ""


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _box_fault(box: dict[str, Any], images: dict[int, dict[str, Any]], categories: set[int]) -> str:
    both: tuple[tuple[str, Container[int]], ...] = (("image_id", images), ("category_id", categories))
    for key, known in both:
        if not _whole(box.get(key)):
            return f"{key} must be an integer, as the ids are, not {box.get(key)!r}"
        if box[key] not in known:
            return f"{key} {box[key]} is not in the file"
    bbox = box.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_number, bbox)) or min(bbox[2:]) < 0:
        return f"bbox must be [left, upper, width, height] in pixels, not {bbox!r}"
    left, upper, width, height = bbox
    image = images[box["image_id"]]
    apart = left >= image["width"] or upper >= image["height"] or left + width <= 0 or upper + height <= 0
    if apart and width and height:
        return f"bbox {bbox} is outside its image of {image['width']} x {image['height']} pixels"
    over = max(-left, left + width - image["width"]), max(-upper, upper + height - image["height"])
    if over[0] > image["width"] or over[1] > image["height"]:  # COCO's own stick out by less than a pixel
        return f"bbox {bbox} is far larger than its image of {image['width']} x {image['height']} pixels"
    if not _number(box.get("area")) or box["area"] < 0:
        return f"area must be a number of pixels, not {box.get('area')!r}"
    return "" if box.get("iscrowd") in (0, 1) else f"iscrowd must be 0 or 1, not {box.get('iscrowd')!r}"


def parse(text: bytes, path: Path) -> dict[str, Any]:
    """The checked annotations of a file's text. Raises IncompleteDatasetError if it is cut short or wrong."""
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise IncompleteDatasetError(
                path, f"not annotations in COCO's format (it holds a {type(values).__name__}, not an object)"
            )
        if lacking := [key for key in ("images", "annotations", "categories") if not isinstance(values.get(key), list)]:
            raise IncompleteDatasetError(path, f"not annotations in COCO's format (no list of {lacking[0]})")
        return checked(values, path)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IncompleteDatasetError(
            path, f"not annotations in COCO's format ({type(error).__name__}: {error})"
        ) from None


def categories_of(path: Path) -> Categories:
    """Names by id, after all checks, which are repeated only if the file has changed. Raises IncompleteDatasetError."""
    state = [VERSION, *file_state(path)]
    try:
        before, found = json.loads(cache_path("coco", path).read_bytes())
        if before == state:
            return {int(number): str(name) for number, name in found}
    except (OSError, RuntimeError, ValueError, TypeError):
        pass  # no cache yet, or not one of this program
    values = parse(path.read_bytes(), path)
    names = {category["id"]: str(category["name"]) for category in values["categories"]}
    if settled(state[1:]):
        keep("coco", path, [state, list(names.items())])
    return names


def compare(train: Categories, val: Categories, folder: Path) -> None:
    """A detector's outputs are numbered by category, so both splits must number and name them alike.

    Raises:
        IncompleteDatasetError: the first category that differs, and in which split.
    """
    for number in sorted({**train, **val}):
        one, other = train.get(number), val.get(number)
        if one is not None and other is not None and one != other:
            what = f"category {number} is {one} in train and {other} in val"
        elif one != other:
            what = f"category {number} ({one or other}) is only in {'train' if other is None else 'val'}"
        else:
            continue
        raise IncompleteDatasetError(folder, f"train and val have different categories: {what}")
