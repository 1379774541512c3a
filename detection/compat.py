"""Makes the released Detectron2 v0.6 importable with current Pillow and numpy, and without its compiled module.

Upstream's main branch needs none of this. v0.6 uses constants that Pillow 10 and numpy 1.24 removed, and imports a compiled
module at start-up, which Faster R-CNN with torchvision's ROIAlign and NMS and pycocotools' COCOeval never calls.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import types
from pathlib import Path

import numpy
from PIL import Image

from jigclu.config import ConfigError

PILLOW = {
    "LINEAR": "BILINEAR",
    "CUBIC": "BICUBIC",
    "ANTIALIAS": "LANCZOS",
}  # removed in Pillow 10 -> their current names
NUMPY = {"int": int, "float": float, "bool": bool}  # removed in numpy 1.24; numpy 2 has bool again
# Files of detectron2 that use the removed names, if this release does.
NAMES_THEM = {"data/transforms/transform.py": r"\bImage\.LINEAR\b", "data/build.py": r"\bnp\.int\b"}
COMPILED = "detectron2._C"
SUPPLIED: list[str] = []  # names that this process has supplied so far; recorded in the result


def prepare() -> None:
    """Make detectron2 importable and list the supplied names in SUPPLIED. Call it before the first import of detectron2.

    Raises:
        ConfigError: detectron2 is not installed.
    """
    found = importlib.util.find_spec("detectron2")
    if found is None or not found.origin:
        raise ConfigError("detectron2 is not installed: `make detectron2` (docs/detection.md)")
    old_pillow, old_numpy = (
        re.search(word, (Path(found.origin).parent / file).read_text()) for file, word in NAMES_THEM.items()
    )
    for old, new in PILLOW.items() if old_pillow else ():
        if not hasattr(Image, old):
            setattr(Image, old, getattr(Image.Resampling, new))
            SUPPLIED.append(f"PIL.Image.{old}")
    for name, kind in NUMPY.items() if old_numpy else ():
        if name not in vars(numpy):
            setattr(numpy, name, kind)
            SUPPLIED.append(f"numpy.{name}")
    package = importlib.import_module("detectron2")
    if COMPILED not in sys.modules and importlib.util.find_spec(COMPILED) is None:
        empty = types.ModuleType(COMPILED, "An empty module, supplied by detection.compat: nothing was compiled.")
        sys.modules[COMPILED] = package._C = empty  # type: ignore[attr-defined]
        SUPPLIED.append(COMPILED)
