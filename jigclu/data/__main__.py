"""Data sets: what is there, is it whole, getting those that may be downloaded, and packing folders of images into a few big files.

  python -m jigclu.data check NAME|all [--subset 1percent|10percent] [--root DIR]
  python -m jigclu.data get NAME [--root DIR]
  python -m jigclu.data pack NAME [--canvas PIXELS] [--quality 1..100] [--workers N] [--force] [--root DIR]

The data sets of the detection stage (coco, coco_mini, coco_scenes) have no subsets.
`check` ends with 0 where everything asked for is whole, else with 1 and a line on what is missing and how to get it.
`pack` writes <root>/packed/: without --quality the very pixels, which every job of that canvas then reads; with it smaller
files of other pixels, which jobs ask for by data.quality.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from jigclu_cli.arguments import Parser, guard_imports

if __name__ == "__main__":
    guard_imports("jigclu.data")

import numpy as np

from jigclu.config import PACKABLE, ConfigError, DataConfig, Subset, nearest
from jigclu.config.detection import DetectionDataConfig, DetectionName
from jigclu.data import download
from jigclu.data.catalog import COLLECTIONS, SPLITS, Source, data_root
from jigclu.data.pack_writer import PackError, outdated, pack, reading
from jigclu.data.sources import coco
from jigclu.data.sources.folders import FolderCollection
from jigclu.data.sources.packed import folder_of, pack_command, pack_facts, packs_of

DETECTION: tuple[str, ...] = get_args(DetectionName)
NOT_PACKED = {
    "scenes": "scenes are drawn when they are read",
    **dict.fromkeys(("cifar10", "cifar100"), "it is one array in memory as it is"),
    **dict.fromkeys(DETECTION, "the detection stage reads it, through Detectron2's own loader"),
}
NAMES = (*COLLECTIONS, *DETECTION)
EXAMPLES = """examples:
  {prog} check all
  {prog} get cifar10 --root /scratch/data
  {prog} pack imagenette --canvas 128
environment: JIGCLU_DATA (data sets, default data/)"""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m jigclu.data") -> int:
    """Exit status: 0 as asked, 1 missing or failed, 2 asked wrongly or not to be downloaded."""
    parser = Parser(prog=prog, description=__doc__, epilog=EXAMPLES.format(prog=prog))
    parser.add_version()
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("check", "get", "pack"):
        command = verbs.add_parser(verb)
        command.add_argument("name", help=f"{', '.join(NAMES)}{', all' if verb == 'check' else ''}")
        command.add_argument("--root", type=Path, help="data root (default: JIGCLU_DATA, else data/)")
        if verb == "check":
            command.add_argument("--subset", help=" or ".join(get_args(Subset)))
        if verb == "pack":
            _pack_arguments(command)
    given = parser.parse_args(arguments)
    names = [*NAMES, *(["all"] if given.verb == "check" else [])]
    if given.name not in names:
        return _refuse(f"unknown data set {given.name!r}; {nearest(given.name, names)}")
    root = data_root(given.root)
    if given.verb == "get":
        return _get(given.name, root)
    if given.verb == "pack":
        return _pack(given, root)
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


def _pack_arguments(command: argparse.ArgumentParser) -> None:
    usual, cpus = DataConfig.model_fields["canvas"].default, len(os.sched_getaffinity(0))
    command.add_argument(
        "--canvas", type=int, default=usual, metavar="PIXELS", help=f"the jobs' data.canvas (default: {usual})"
    )
    command.add_argument("--quality", type=int, metavar="1..100", help="as JPEG of this quality (default: the pixels)")
    command.add_argument(
        "--workers", type=int, default=cpus, metavar="N", help=f"processes that decode, 0: this one (default: {cpus})"
    )
    command.add_argument("--force", action="store_true", help="in place of the pack that is there")


def _config(name: str, subset: str | None = None) -> DataConfig:
    return DataConfig.model_validate({"name": name, "subset": subset})


def _detection(name: str) -> DetectionDataConfig:
    return DetectionDataConfig.model_validate({"name": name})


def _refuse(message: str, status: int = 2) -> int:
    print(message, file=sys.stderr)
    return status


def _describe(data: DataConfig, root: Path) -> int:
    """Every number of one data set, and its packs."""
    packs, status = _packs(data, root), 0
    try:
        sources, against = _opened(data, packs, root)
    except ConfigError as error:
        status = _refuse(str(error), 1)
    else:
        part = f", train: {data.subset}" if data.subset else ""
        print(f"{data.name} {data.version}{part}: whole ({against})")
        for split, source in zip(SPLITS, sources, strict=True):
            sizes = np.bincount(source.labels, minlength=len(source.classes))
            print(
                f"{split:5}  {len(source.paths)} images, {len(source.classes)} classes of {sizes.min()} to "
                f"{sizes.max()}, fingerprint {source.fingerprint}"
            )
    return max([status, *(_pack_line(one, root) for one in packs)])


def _opened(data: DataConfig, packs: list[DataConfig], root: Path) -> tuple[list[Source], str]:
    """Both splits from the files themselves (where only packs are there: from the first), and what they were held against."""
    collection = COLLECTIONS[data.name]
    if not isinstance(collection, FolderCollection):
        return [collection.open(data, split, root) for split in SPLITS], collection.verified(data, root)
    if packs and collection.absent(root):
        return [collection.open(packs[0], split, root) for split in SPLITS], "packs alone, no folders"
    return [collection.from_files(data, split, root) for split in SPLITS], collection.verified(data, root)


def _packs(data: DataConfig, root: Path) -> list[DataConfig]:
    return packs_of(data, root) if data.name in PACKABLE else []


def _pack_line(data: DataConfig, root: Path) -> int:
    """Whether one pack is whole, every byte of it, and of the images that lie in the folders."""
    try:
        facts = pack_facts(data, root)
    except ConfigError as error:
        return _refuse(str(error), 1)
    if old := outdated(data, root, facts):
        return _refuse(f"data set {data.name}: {old}; make it again with `{pack_command(data, root)} --force`", 1)
    size = sum(file.bytes for split in facts.splits.values() for file in split.files.values())
    print(f"pack   {folder_of(data, root)}: whole, {size / 1e9:.2f} GB; {reading(data)}")
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
            verified = _verified(data, root)
    except ConfigError as error:
        print(f"{data.name:11}  {error}")
        return 1
    print(f"{data.name:11}  ok ({verified})")
    return 0


def _verified(data: DataConfig, root: Path) -> str:
    """What the data set was held against and which packs it has; of those no big file is read."""
    collection, packs = COLLECTIONS[data.name], _packs(data, root)
    for one in packs:
        pack_facts(one, root, thorough=False)
    told = f"packed: {', '.join(folder_of(one, root).name for one in packs)}"
    if not isinstance(collection, FolderCollection):
        collection.check(data, root)
    elif packs and collection.absent(root):
        return f"no folders, {told}"
    else:
        for split in SPLITS:
            collection.from_files(data, split, root)
    return "; ".join([collection.verified(data, root), *([told] if packs else [])])


def _get(name: str, root: Path) -> int:
    if name in download.BY_HAND:
        return _refuse(f"{name} is not to be downloaded from here: {download.BY_HAND[name]}")
    try:
        print(download.get(_config(name), root))
    except download.DownloadError as error:
        return _refuse(str(error), 1)
    return 0


def _pack(given: argparse.Namespace, root: Path) -> int:
    if given.name not in PACKABLE:
        return _refuse(f"{given.name} is not packed: {NOT_PACKED[given.name]}; those that are: {', '.join(PACKABLE)}")
    if given.canvas < 1 or given.workers < 0 or not 1 <= (given.quality or 1) <= 100 or given.quality == 0:
        return _refuse("--canvas is at least 1, --quality 1 to 100, --workers at least 0")
    data = DataConfig(name=given.name, canvas=given.canvas, quality=given.quality)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # through the clean-up
    try:
        print(pack(data, root, given.workers, given.force))
    except (ConfigError, PackError) as error:
        return _refuse(str(error), 1)
    except KeyboardInterrupt:
        return _refuse("interrupted; nothing was kept", 128 + signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
