"""The baselines' own recipes: MoCo v1's steps, SimCLR's head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jigclu.config import ConfigError, PretrainConfig, identity, parse
from jigclu.job_folder import JobFolder
from jigclu.network import EncoderWithHead, simclr_head
from jigclu.stages import pretrain
from orchestrate.planning import experiments
from orchestrate.planning.plan import make_plan


def recipe(method: str, scale: str = "paper") -> PretrainConfig:
    """The pretraining of Table 1's row."""
    plan = make_plan(experiments.find(["table1"]), scale, "official")
    (found,) = [job.config for job in plan.jobs.values() if job.stage == "pretrain" and job.label == method]
    assert isinstance(found, PretrainConfig)
    return found


def moco_readme(epoch: int, lr: float = 0.03, schedule: tuple[int, ...] = (120, 160)) -> float:
    """`adjust_learning_rate` of facebookresearch/moco, main_moco.py, without --cos."""
    for milestone in schedule:
        lr *= 0.1 if epoch >= milestone else 1.0
    return lr


def test_moco_v1_falls_at_epochs_120_and_160_of_200() -> None:
    config = recipe("moco")
    assert [pretrain.rate(config, epoch) for epoch in range(200)] == pytest.approx([*map(moco_readme, range(200))])
    assert {recipe(name).schedule for name in ("moco v2", "simclr", "m=2")} == {"cosine"}


def test_milestones_are_shares_so_they_hold_at_every_scale() -> None:
    config = recipe("moco", "smoke")
    rates = [pretrain.rate(config, epoch) / config.optimizer.lr for epoch in range(config.epochs)]
    assert rates == pytest.approx([1] * 8 + [0.1] * 2 + [0.01] * 3) and config.epochs == 13


def test_the_loop_trains_with_the_rate_of_the_schedule(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "data": {"name": "scenes", "canvas": 32, "train_images": 8, "val_images": 10},
        "backbone": "resnet18", "image_size": 32, "batch_size": 4, "epochs": 5, "schedule": "steps", "milestones": [0.4],
        "runtime": {"device": "cpu", "threads": 1, "workers": 0, "log_every": 1},
    }  # fmt: skip
    pretrain.run(parse("pretrain", values), tmp_path)
    rates = [line["lr"] for line in JobFolder(tmp_path).metrics() if "lr" in line]
    assert rates == pytest.approx([0.03] * 4 + [0.003] * 6)


def test_a_job_without_the_new_settings_keeps_its_id() -> None:
    plain = identity(parse("pretrain", {"method": {"name": "simclr"}}))
    assert not {"schedule", "milestones"} & plain.keys() and "head" not in plain["method"]
    assert "calibrate_bn" not in identity(parse("linear", {})) | identity(parse("knn", {}))
    with pytest.raises(ConfigError, match=r"pretrain.schedule: 'linear' is not a valid choice; valid: cosine, steps"):
        parse("pretrain", {"schedule": "linear"})
    with pytest.raises(ConfigError, match=r"pretrain.method.head: 'batchnorm' is not a valid choice; valid: bn, mlp"):
        parse("pretrain", {"method": {"name": "simclr", "head": "batchnorm"}})
    with pytest.raises(ConfigError, match=r"knn.calibrate_bn: true or false is expected \(got 1\)"):
        parse("knn", {"calibrate_bn": 1})


def test_simclrs_head_is_that_of_its_released_code() -> None:
    """tf2/model.py, ProjectionHead: dense, batch norm, ReLU; dense, batch norm without an offset; no dense has a bias."""
    torch.manual_seed(0)
    head, x = simclr_head(6, 4), torch.randn(10, 6)
    with torch.no_grad():
        head[1].weight.uniform_(0.5, 2)
        head[1].bias.uniform_(-1, 1)
        head[4].weight.uniform_(0.5, 2)

    def norm(values: np.ndarray) -> np.ndarray:
        return (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-5)

    first, scale, offset, second, last = (
        head[i].get_parameter(name).detach().double().numpy()
        for i, name in ((0, "weight"), (1, "weight"), (1, "bias"), (3, "weight"), (4, "weight"))
    )
    hidden = np.maximum(norm(x.double().numpy() @ first.T) * scale + offset, 0)
    wanted = norm(hidden @ second.T) * last
    np.testing.assert_allclose(head(x).detach().numpy(), wanted, rtol=1e-3, atol=1e-5)
    assert head[0].bias is None and head[3].bias is None
    assert not head[4].bias.requires_grad and not head[4].bias.any()


def test_simclr_has_its_own_head_and_mlp_is_a_choice() -> None:
    config = recipe("simclr")
    assert config.method.head == "bn"  # type: ignore[union-attr]
    kinds = {head: [type(part) for part in EncoderWithHead("resnet18", 8, head).head] for head in ("bn", "mlp")}  # type: ignore
    assert kinds == {
        "bn": [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d],
        "mlp": [nn.Linear, nn.ReLU, nn.Linear],
    }
