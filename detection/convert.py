"""Key names: torchvision's ResNet (encoder.pt, the released checkpoint) -> Detectron2's. Exact names, no heuristics. No detectron2.

  conv1, bn1 -> stem.conv1, stem.conv1.norm      layerN.b.convK, bnK -> res(N+1).b.convK, convK.norm
  layerN.b.downsample.0, .1 -> res(N+1).b.shortcut, shortcut.norm
(protocols.md §2.6 "Conversion"; golden/g9 lists the released script's whole map.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

PREFIX = "backbone.bottom_up."  # of the ResNet inside d2's FPN
RELEASED = "module.encoder."  # before every key of the released checkpoint
_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)")
_HEADS = re.compile(r"fc(_\w+)?\.")  # heads of the pretext task, or of the classifier


def detectron2_key(key: str) -> str:
    """`layer1.0.bn1.weight` -> `backbone.bottom_up.res2.0.conv1.norm.weight`.

    Raises:
        ValueError: no ResNet backbone has this key.
    """
    if match := _BLOCK.fullmatch(key):
        layer, block, kind, number, name = match.groups()
        if kind == "downsample.":
            module = "shortcut" if number == "0" else "shortcut.norm"
        else:
            module = f"conv{number}" if kind == "conv" else f"conv{number}.norm"
        return f"{PREFIX}res{int(layer) + 1}.{block}.{module}.{name}"
    if key == "conv1.weight":
        return f"{PREFIX}stem.conv1.weight"
    if key.startswith("bn1.") and key.count(".") == 1:
        return f"{PREFIX}stem.conv1.norm.{key.removeprefix('bn1.')}"
    raise ValueError(f"{key!r} is not a tensor of a ResNet backbone")


def convert(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's keys, with or without the released checkpoint's `module.encoder.`, to Detectron2's.

    Heads (`fc...`) are left out; BN's `num_batches_tracked` is kept.

    Raises:
        ValueError: any other key; the message names it.
    """
    plain = {key.removeprefix(RELEASED): value for key, value in weights.items()}
    return {detectron2_key(key): value for key, value in plain.items() if not _HEADS.match(key)}
