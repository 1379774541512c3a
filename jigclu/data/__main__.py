"""Data sets: check what is there, download those that may be, and pack folders of images into a few large files."""

from __future__ import annotations

from jigclu_cli.guard import guard_imports

if __name__ == "__main__":
    guard_imports("jigclu.data")

import argparse
import re
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from jigclu.config import DATASETS, ConfigError, DataConfig, Subset, dataset_spec, nearest, packable_names
from jigclu.config.datasets import NOT_PACKED
from jigclu.config.detection import DETECTION_DATASETS, DetectionDataConfig
from jigclu.config.machine import usable_cores
from jigclu.data import download
from jigclu.data.catalog import SPLITS, Source, collection, data_root
from jigclu.data.digests import verify
from jigclu.data.pack_writer import PackError, outdated, pack, usage
from jigclu.data.sources import coco
from jigclu.data.sources.folder_index import SUMS, scan
from jigclu.data.sources.folders import FolderCollection
from jigclu.data.sources.packed import folder_of, pack_command, pack_facts, packs_of
from jigclu_cli.arguments import Parser, file_problem, mistake, whole
from jigclu_cli.output import steady

USAGE = """
  {prog} check NAME|all [--subset 1percent|10percent] [--digests] [--root DIR]
  {prog} get NAME [--root DIR]
  {prog} pack NAME [--canvas PIXELS] [--quality 1..100] [--workers N] [--force] [--root DIR]

`check` exits with 0 if everything is complete, else with 1 and a line saying what is missing and how to get it.
With --digests it also reads every file and compares it with the SHA256SUMS in the data set's folder.
`pack` writes <root>/packed/. Without --quality it stores the exact pixels, which every job with that canvas then reads;
with it the files are smaller and the pixels differ, so jobs must ask for it with data.quality.
The data sets of the detection stage ({detection}) have no subsets and are not packed."""
EXAMPLES = """examples:
  {prog} check all
  {prog} get cifar10 --root /scratch/data
  {prog} pack imagenette --canvas 128
environment: JIGCLU_DATA (data sets, default data/)"""


@steady
def main(arguments: Sequence[str] | None = None, prog: str = "python -m jigclu.data") -> int:
    """Exit status: 0 done, 1 missing or failed, 2 wrong arguments or a data set that cannot be downloaded."""
    given = _parser(prog).parse_args(arguments)
    try:
        return _run(given)
    except OSError as error:  # a path too long, another user's folder
        return _fail(file_problem(error))


def _run(given: argparse.Namespace) -> int:
    names = [*DATASETS, *DETECTION_DATASETS, *(["all"] if given.verb == "check" else [])]
    if given.name not in names:
        return _fail(_unknown(given.verb, given.name, names))
    root = data_root(given.root)
    if given.verb == "get":
        return _get(given.name, root)
    if given.verb == "pack":
        return _pack(given, root)
    if given.subset not in (None, *get_args(Subset)):
        return _fail(f"unknown subset {given.subset!r}; {nearest(given.subset, get_args(Subset))}")
    if given.subset and given.name in DETECTION_DATASETS:
        return _fail(f"{given.name} has no subset {given.subset}; data sets with subsets: {', '.join(DATASETS)}")
    if given.name == "all" and given.digests:
        return _fail("--digests reads every file of one data set: give its name instead of all")
    if given.name == "all":
        statuses = [_check_line(_config(name, given.subset), root) for name in DATASETS]
        return max(statuses + [_check_line(_detection(name), root) for name in DETECTION_DATASETS if not given.subset])
    if given.name in DETECTION_DATASETS:
        status = _describe_boxes(_detection(given.name), root)
    else:
        status = _describe(_config(given.name, given.subset), root)
    return status or (_check_digests(given.name, root) if given.digests else 0)


def _names(verb: str) -> list[str]:
    """The data sets that the verb can handle."""
    if verb == "pack":
        return packable_names()
    return (
        [spec.name for spec in DATASETS.values() if spec.fetcher] if verb == "get" else [*DATASETS, *DETECTION_DATASETS]
    )


def _unknown(verb: str, name: str, names: list[str]) -> str:
    """Lists the verb's own data sets, and suggests the nearest of all: its own message says why it does not fit the verb."""
    suggestion = re.search(r"did you mean [^?]*\?", nearest(name, names))
    valid = sorted({*_names(verb), *(["all"] if verb == "check" else [])})
    return f"unknown data set {name!r}; valid: {', '.join(valid)}{f'; {suggestion[0]}' if suggestion else ''}"


def _parser(prog: str) -> Parser:
    description = f"{__doc__}\n{USAGE.format(prog=prog, detection=', '.join(DETECTION_DATASETS))}"
    parser = Parser(
        prog=prog, usage=f"{prog} VERB NAME ...", description=description, epilog=EXAMPLES.format(prog=prog)
    )
    parser.add_version()
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("check", "get", "pack"):
        command = verbs.add_parser(verb, prog=f"{prog} {verb}")
        command.add_argument("name", help=f"{', '.join(_names(verb))}{', all' if verb == 'check' else ''}")
        command.add_argument("--root", type=Path, help="data root (default: JIGCLU_DATA, else data/)")
        if verb == "check":
            command.add_argument("--subset", help=" or ".join(get_args(Subset)))
            command.add_argument("--digests", action="store_true", help="compare every file with the set's SHA256SUMS")
        if verb == "pack":
            _pack_arguments(command)
    return parser


def _pack_arguments(command: argparse.ArgumentParser) -> None:
    usual, cpus = DataConfig.model_fields["canvas"].default, len(usable_cores())
    command.add_argument(
        "--canvas",
        type=whole(1, 10_000),
        default=usual,
        metavar="PIXELS",
        help=f"the jobs' data.canvas (default: {usual})",
    )
    command.add_argument(
        "--quality",
        type=whole(1, 100),
        metavar="1..100",
        help="store JPEGs of this quality (default: the exact pixels)",
    )
    command.add_argument(
        "--workers",
        type=whole(0, 1024),
        default=cpus,
        metavar="N",
        help=f"decoding processes, 0: none (default: {cpus})",
    )
    command.add_argument("--force", action="store_true", help="replace the existing pack")


def _config(name: str, subset: str | None = None) -> DataConfig:
    return DataConfig.model_validate({"name": name, "subset": subset})


def _detection(name: str) -> DetectionDataConfig:
    return DetectionDataConfig.model_validate({"name": name})


def _fail(message: str, status: int = 2) -> int:
    if status == 2:
        return mistake("jigclu data", message)
    print(message if status == 1 else f"jigclu data: {message}", file=sys.stderr)
    return status


def _describe(data: DataConfig, root: Path) -> int:
    """Every number of one data set, and its packs."""
    packs, status = _packs(data, root), 0
    try:
        sources, evidence = _opened(data, packs, root)
    except ConfigError as error:
        status = _fail(str(error), 1)
    else:
        part = f", train: {data.subset}" if data.subset else ""
        print(f"{data.name} {data.version}{part}: complete ({evidence})")
        for split, source in zip(SPLITS, sources, strict=True):
            sizes = np.bincount(source.labels, minlength=len(source.classes))
            print(
                f"{split:5}  {len(source.paths)} images, {len(source.classes)} classes of {sizes.min()} to "
                f"{sizes.max()}, fingerprint {source.fingerprint}"
            )
    return max([status, *(_check_pack(packed, root) for packed in packs)])


def _opened(data: DataConfig, packs: list[DataConfig], root: Path) -> tuple[list[Source], str]:
    """Both splits, from the files or (without files) the first pack, and what they were checked against."""
    images = collection(data.name)
    if not isinstance(images, FolderCollection):
        return [images.open(data, split, root) for split in SPLITS], images.verified(data, root)
    if packs and images.absent(root):
        return [images.open(packs[0], split, root) for split in SPLITS], "packs only, no folders"
    return [images.from_files(data, split, root, fresh=True) for split in SPLITS], images.verified(data, root)


def _check_digests(name: str, root: Path) -> int:
    """Every file of a complete data set against its SHA256SUMS; CIFAR's digests were verified when it was opened."""
    spec = DATASETS.get(name)
    if (spec and spec.layout == "drawn") or (name in DETECTION_DATASETS and DETECTION_DATASETS[name].drawn):
        return _fail(f"data set {name}: it is drawn when it is read and has no files, so there are no digests", 0)
    folder = root / (spec.folder if spec else "coco")
    try:
        if spec and spec.layout == "cifar":
            print(f"digests: {collection(name).verified(_config(name), root)}")
            return 0
        images = _images(name, root)
        print(verify(name, folder, folder / SUMS, images))
    except ConfigError as error:
        return _fail(str(error), 1)
    return 0


def _images(name: str, root: Path) -> list[str]:
    """Every image of the data set, below its folder."""
    if name in DETECTION_DATASETS:
        listings = scan(root / "coco", [f"{split}2017" for split in SPLITS]).items()
        return [f"{folder}/{file}" for folder, files in listings for file, _ in files]
    sources = [(split, collection(name).open(_config(name), split, root)) for split in SPLITS]
    return [f"{split}/{path}" for split, source in sources for path in source.paths.tolist()]


def _packs(data: DataConfig, root: Path) -> list[DataConfig]:
    return packs_of(data, root) if dataset_spec(data.name).packable else []


def _check_pack(data: DataConfig, root: Path) -> int:
    """Whether one pack is complete, every byte of it, and made from the images that are in the folders now."""
    try:
        facts = pack_facts(data, root)
    except ConfigError as error:
        return _fail(str(error), 1)
    if difference := outdated(data, root, facts):
        return _fail(f"data set {data.name}: {difference}; make it again with `{pack_command(data, root)} --force`", 1)
    size = sum(file.bytes for split in facts.splits.values() for file in split.files.values())
    print(f"pack   {folder_of(data, root)}: complete, {size / 1e9:.2f} GB; {usage(data)}")
    return 0


def _describe_boxes(data: DetectionDataConfig, root: Path) -> int:
    """The same for a data set in COCO's format, opened as the stage does it; scenes are drawn in a temporary folder."""
    try:
        with tempfile.TemporaryDirectory() as drawn:
            splits = [coco.open_split(data, split, root, Path(drawn)) for split in SPLITS]
    except ConfigError as error:
        return _fail(str(error), 1)
    print(f"{data.name} {data.version}: complete ({coco.verified(data)})")
    for name, split in zip(SPLITS, splits, strict=True):
        annotations = split.annotations["annotations"]
        boxes = [box for box in annotations if not box.get("iscrowd", 0)]
        crowds = len(annotations) - len(boxes)
        extra = f" ({crowds} crowds not counted)" if crowds else ""
        person = {category["id"] for category in split.annotations["categories"] if category["name"] == "person"}
        people = f", {sum(box['category_id'] in person for box in boxes)} of person" if person else ""
        print(
            f"{name:5}  {len(split.annotations['images'])} images, {len(boxes)} boxes{extra} of "
            f"{len(split.categories)} categories{people}, fingerprint {split.fingerprint}"
        )
    return 0


def _check_line(data: DataConfig | DetectionDataConfig, root: Path) -> int:
    """One line: whether the data set is complete. No image is read for that."""
    try:
        if isinstance(data, DetectionDataConfig):
            coco.check(data, root)
            evidence = coco.verified(data)
        else:
            evidence = _verified(data, root)
    except ConfigError as error:
        print(f"{data.name:15}  {error}")
        return 1
    print(f"{data.name:15}  ok ({evidence})")
    return 0


def _verified(data: DataConfig, root: Path) -> str:
    """What the data set was checked against, and its packs, of which no large file is read."""
    images, packs = collection(data.name), _packs(data, root)
    for packed in packs:
        pack_facts(packed, root, thorough=False)
    listing = f"packed: {', '.join(folder_of(packed, root).name for packed in packs)}"
    if not isinstance(images, FolderCollection):
        images.check(data, root)
    elif packs and images.absent(root):
        return f"no folders, {listing}"
    else:
        for split in SPLITS:
            images.from_files(data, split, root, fresh=True)
    return "; ".join([images.verified(data, root), *([listing] if packs else [])])


def _get(name: str, root: Path) -> int:
    if name in DETECTION_DATASETS or not dataset_spec(name).fetcher:
        spec = DETECTION_DATASETS.get(name) or dataset_spec(name)
        return _fail(f"{name} cannot be downloaded: {spec.how_to_get}")
    try:
        print(download.get(_config(name), root))
    except download.DownloadError as error:
        return _fail(str(error), 1)
    return 0


def _pack(given: argparse.Namespace, root: Path) -> int:
    if given.name in DETECTION_DATASETS:
        reason = "the detection stage reads it through Detectron2's own loader"
    else:
        reason = NOT_PACKED.get(dataset_spec(given.name).layout, "")
    if reason:
        return _fail(f"{given.name} is not packed: {reason}; data sets that are: {', '.join(packable_names())}")
    data = DataConfig(name=given.name, canvas=given.canvas, quality=given.quality)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the clean-up runs
    try:
        print(pack(data, root, given.workers, given.force))
    except (ConfigError, PackError) as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was kept", 128 + signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
