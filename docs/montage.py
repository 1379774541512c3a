"""Draws docs/montage.png: four scenes and the montages that the training code makes from that batch.

Run in the repository: `python docs/montage.py`.
"""

import sys
from pathlib import Path

import torch
from torchvision.utils import make_grid, save_image

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jigclu import methods
from jigclu.config import parse
from jigclu.data.canvases import open_dataset
from jigclu.data.loader import Unreadable, batches
from jigclu.training.distributed import join_ranks

SIDE, SCENES = 160, [11, 24, 5, 37]

data = {"name": "scenes", "canvas": 224, "train_images": 40, "val_images": 10}
config = parse("pretrain", {"data": data, "backbone": "resnet18", "image_size": SIDE, "batch_size": 4})
dataset = open_dataset(config.data, "train")
batch = next(batches(dataset, [SCENES], 0, Unreadable(), substitute=True))
method = methods.build(config, 0, join_ranks("cpu", 1), len(dataset.classes))
whole = torch.nn.functional.interpolate(batch.canvas / 255, size=(SIDE, SIDE), mode="bilinear", antialias=True)
rows = torch.cat([whole, method.picture(method.prepare(batch, 0, 0))])
save_image(make_grid(rows, nrow=4, padding=6, pad_value=1), Path(__file__).with_suffix(".png"))
