"""Batch norms calibrated before a backbone is frozen: a floor of random weights that is a working network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from jigclu.config import DataConfig, KnnConfig, LinearConfig, RuntimeConfig
from jigclu.data.canvases import open_dataset
from jigclu.data.order import epoch_groups
from jigclu.evaluation.extractor import Extractor
from jigclu.evaluation.transforms import centre_crop
from jigclu.stages import knn, linear
from jigclu.stages.encoders import frozen_extractor
from jigclu.training.session import Session

KNN = KnnConfig(
    data=DataConfig(name="scenes", canvas=32, train_images=100, val_images=50), backbone="resnet18", image_size=32,
    resize=36, batch_size=32, runtime=RuntimeConfig(workers=0, threads=1, device="cpu", log_every=1),
)  # fmt: skip
CALIBRATED = KNN.model_copy(update={"calibrate_bn": True})


def extractor(config: KnnConfig, folder: Path) -> Extractor:
    return frozen_extractor(config, Session(folder, config.runtime))


def images(indices: list[int]) -> Tensor:
    train = open_dataset(KNN.data, "train")
    canvas = torch.stack([train[i].canvas for i in indices])
    return centre_crop(canvas, torch.full((len(indices), 2), 32), KNN.resize, KNN.image_size)


def test_statistics_are_the_mean_over_batches_in_random_order(tmp_path: Path) -> None:
    found = extractor(CALIBRATED, tmp_path)
    raw = extractor(KNN, tmp_path / "raw").backbone.resnet
    groups = epoch_groups(0, 0, 100, 32)
    with torch.no_grad():
        maps = [raw.conv1(images(group)) for group in groups]
    first = found.backbone.resnet.bn1
    torch.testing.assert_close(first.running_mean, torch.stack([x.mean((0, 2, 3)) for x in maps]).mean(0))
    torch.testing.assert_close(first.running_var, torch.stack([x.var((0, 2, 3)) for x in maps]).mean(0))


def test_only_running_statistics_change_and_the_backbone_is_frozen(tmp_path: Path) -> None:
    found, raw = extractor(CALIBRATED, tmp_path), extractor(KNN, tmp_path / "raw")
    for name, value in raw.backbone.state_dict().items():
        same = torch.equal(found.backbone.state_dict()[name], value)
        assert same != ("running_" in name or name.endswith("num_batches_tracked")), name
    norms = [module for module in found.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not found.backbone.training and {norm.momentum for norm in norms} == {0.1}
    assert not any(parameter.requires_grad for parameter in found.backbone.parameters())


def test_every_channel_has_the_mean_and_variance_that_its_layer_expects(tmp_path: Path) -> None:
    """0 and 1 on images that were not used; with the initial statistics they are what the weights happen to give."""
    found = {}
    for name, config in (("raw", KNN), ("calibrated", CALIBRATED)):
        backbone = extractor(config, tmp_path / name)
        seen: list[Tensor] = []
        norm = backbone.backbone.resnet.layer3[0].downsample[1]
        norm.register_forward_hook(lambda _module, _input, output, seen=seen: seen.append(output))
        backbone.test_features(open_dataset(KNN.data, "val"))
        values = torch.cat(seen)
        found[name] = float(values.mean((0, 2, 3)).abs().mean()), float(values.var((0, 2, 3)).mean())
    (mean, variance), (raw_mean, raw_variance) = found["calibrated"], found["raw"]
    assert mean < 0.1 and 0.9 < variance < 1.1
    assert raw_mean > 0.5 and raw_variance < 0.6


def test_linear_and_knn_use_it_and_the_result_is_reproducible(tmp_path: Path) -> None:
    def top1(config: KnnConfig, name: str) -> float:
        return float(knn.run(config, tmp_path / name)["metrics"]["top1"])

    assert top1(CALIBRATED, "a") == top1(CALIBRATED, "b")
    shared = CALIBRATED.model_dump(exclude={"k", "temperature"})
    config = LinearConfig(**shared, epochs=2, lr=0.1, other_lrs=())
    first = linear.run(config, tmp_path / "c")
    assert first["by_lr"] == linear.run(config, tmp_path / "d")["by_lr"]
    plain = linear.run(config.model_copy(update={"calibrate_bn": False}), tmp_path / "e")
    assert plain["by_lr"] != first["by_lr"]
