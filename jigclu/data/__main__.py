"""Data sets: what is there, is it whole, and getting those that may be downloaded.

  python -m jigclu.data check NAME|all [--subset 1percent|10percent] [--root DIR]
  python -m jigclu.data get NAME [--root DIR]

The data sets of the detection stage (coco, coco_mini, coco_scenes) have no subsets.
`check` ends with 0 where everything asked for is whole, else with 1 and a line on what is missing and how to get it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from jigclu.config import ConfigError, DataConfig, Subset, nearest
from jigclu.data import coco, download
from jigclu.data.catalog import COLLECTIONS, SPLITS, catalogue, check, data_root
from jigclu.detect_config import DetectionDataConfig, DetectionName

DETECTION: tuple[str, ...] = get_args(DetectionName)
NAMES = (*COLLECTIONS, *DETECTION)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 as asked, 1 missing or failed, 2 asked wrongly or not to be downloaded."""
    parser = argparse.ArgumentParser(
        prog="python -m jigclu.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("check", "get"):
        command = verbs.add_parser(verb)
        command.add_argument("name", help=f"{', '.join(NAMES)}{', all' if verb == 'check' else ''}")
        command.add_argument("--root", type=Path, help="data root (default: JIGCLU_DATA, else data/)")
        if verb == "check":
            command.add_argument("--subset", help=" or ".join(get_args(Subset)))
    given = parser.parse_args(arguments)
    names = [*NAMES, *(["all"] if given.verb == "check" else [])]
    if given.name not in names:
        return _refuse(f"unknown data set {given.name!r}; {nearest(given.name, names)}")
    root = data_root(given.root)
    if given.verb == "get":
        return _get(given.name, root)
    if given.subset not in (None, *get_args(Subset)):
        return _refuse(f"unknown subset {given.subset!r}; {nearest(given.subset, list(get_args(Subset)))}")
    if given.subset and given.name in DETECTION:
        return _refuse(f"{given.name} has no subset {given.subset}; those that have: {', '.join(COLLECTIONS)}")
    if given.name == "all":
        whole = [_line(_config(name, given.subset), root) for name in COLLECTIONS]
        return max(whole + [_line(_detection(name), root) for name in DETECTION if not given.subset])
    if given.name in DETECTION:
        return _describe_boxes(_detection(given.name), root)
    return _describe(_config(given.name, given.subset), root)


def _config(name: str, subset: str | None = None) -> DataConfig:
    return DataConfig.model_validate({"name": name, "subset": subset})


def _detection(name: str) -> DetectionDataConfig:
    return DetectionDataConfig.model_validate({"name": name})


def _refuse(message: str, status: int = 2) -> int:
    print(message, file=sys.stderr)
    return status


def _describe(data: DataConfig, root: Path) -> int:
    """Every number of one data set."""
    try:
        sources = [catalogue(data, split, root) for split in SPLITS]
    except ConfigError as error:
        return _refuse(str(error), 1)
    part = f", train: {data.subset}" if data.subset else ""
    print(f"{data.name} {data.version}{part}: whole ({COLLECTIONS[data.name].verified(data, root)})")
    for split, source in zip(SPLITS, sources, strict=True):
        sizes = np.bincount(source.labels, minlength=len(source.classes))
        print(
            f"{split:5}  {len(source.paths)} images, {len(source.classes)} classes of {sizes.min()} to {sizes.max()}, "
            f"fingerprint {source.fingerprint}"
        )
    return 0


def _describe_boxes(data: DetectionDataConfig, root: Path) -> int:
    """The same of a data set in COCO's format: it is opened as the stage does it, scenes drawn into a folder that goes again."""
    try:
        with tempfile.TemporaryDirectory() as drawn:
            splits = [coco.open_split(data, split, root, Path(drawn)) for split in SPLITS]
    except ConfigError as error:
        return _refuse(str(error), 1)
    print(f"{data.name} {data.version}: whole ({coco.verified(data, root)})")
    for name, split in zip(SPLITS, splits, strict=True):
        boxes = [one for one in split.annotations["annotations"] if not one.get("iscrowd", 0)]
        crowds = len(split.annotations["annotations"]) - len(boxes)
        aside = f" ({crowds} crowds aside)" if crowds else ""
        person = {one["id"] for one in split.annotations["categories"] if one["name"] == "person"}
        people = f", {sum(one['category_id'] in person for one in boxes)} of person" if person else ""
        print(
            f"{name:5}  {len(split.annotations['images'])} images, {len(boxes)} boxes{aside} of {len(split.categories)} "
            f"categories{people}, fingerprint {split.fingerprint}"
        )
    return 0


def _line(data: DataConfig | DetectionDataConfig, root: Path) -> int:
    """Whether it is whole; images aren't read for that."""
    try:
        if isinstance(data, DetectionDataConfig):
            coco.check(data, root)
            verified = coco.verified(data, root)
        else:
            check(data, root)
            verified = COLLECTIONS[data.name].verified(data, root)
    except ConfigError as error:
        print(f"{data.name:11}  {error}")
        return 1
    print(f"{data.name:11}  ok ({verified})")
    return 0


def _get(name: str, root: Path) -> int:
    if name in download.BY_HAND:
        return _refuse(f"{name} is not to be downloaded from here: {download.BY_HAND[name]}")
    try:
        print(download.get(_config(name), root))
    except download.DownloadError as error:
        return _refuse(str(error), 1)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
