"""The solved pretext task: patches are marked correct exactly if the network's grouping and location are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from torch import Tensor

from jigclu import counter_rng, methods
from jigclu.config import DataConfig, PretrainConfig, RuntimeConfig
from jigclu.data.canvases import open_dataset
from jigclu.data.loader import Batch, Unreadable, batches
from jigclu.evaluation import metrics
from jigclu.figures import neighbours, recovery
from jigclu.job_folder import JobFolder
from jigclu.methods.jigclu import JigClu
from jigclu.training.distributed import RankInfo
from jigclu.training.usage import Usage

CPU = torch.device("cpu")


@pytest.mark.parametrize(("count", "size"), [(5, 4), (3, 9), (1, 4)])
def test_near_vectors_are_grouped(count: int, size: int) -> None:
    generator = torch.Generator().manual_seed(count)
    centres = torch.randn(count, 32, generator=generator)
    order = torch.randperm(count * size, generator=generator)
    of = torch.arange(count).repeat(size)[order]
    groups = recovery.group_vectors(centres[of] + 0.1 * torch.randn(count * size, 32, generator=generator), size)
    assert groups.shape == (count, size) and sorted(groups.flatten().tolist()) == list(range(count * size))
    assert (of[groups] == of[groups][:, :1]).all()


def test_no_position_is_assigned_twice_and_the_most_confident_is_first() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.0], [0.95, 0.1, 0.0], [0.2, 0.3, 0.1]]).log()
    assert recovery.assigned_positions(scores).tolist() == [1, 0, 2]


@pytest.fixture(scope="module", params=[2, 3])
def task(request: pytest.FixtureRequest) -> tuple[JigClu, Batch]:
    data = DataConfig(name="scenes", canvas=64, train_images=40, val_images=20)
    config = PretrainConfig(
        data=data, backbone="resnet18", image_size=60, batch_size=10, precision="float32",
        method={"name": "jigclu", "m": request.param}, runtime=RuntimeConfig(device="cpu", threads=1),  # type: ignore[arg-type]
    )  # fmt: skip
    dataset = open_dataset(data, "train")
    torch.manual_seed(0)
    method = methods.build(config, 0, RankInfo(0, 1, CPU), len(dataset.classes))
    assert isinstance(method, JigClu)
    return method, next(batches(dataset, [list(range(16))], 0, Unreadable(), substitute=True))


class Oracle(torch.nn.Module):
    """Knows the permutation of each round in turn, but swaps the places of `wrong` pairs within one image."""

    def __init__(self, method: JigClu, wrong: int):
        super().__init__()
        self.method, self.wrong, self.round = method, wrong, 0

    def forward(self, montages: Tensor) -> tuple[Tensor, Tensor]:
        mm, count = self.method.m**2, len(montages)
        permutation = counter_rng.permutation(0, counter_rng.MONTAGE, 7, self.round, mm * count)
        self.round += 1
        images, positions = permutation % count, permutation // count
        for image in range(self.wrong):
            first, second = ((images == image) & (positions == position) for position in (0, 1))
            positions = torch.where(first, 1, torch.where(second, 0, positions))
        return torch.eye(count)[images], 9 * torch.eye(mm)[positions]


def share(path: Path, colour: tuple[float, float, float]) -> float:
    return float((abs(imread(path)[..., :3] - torch.tensor(colour).numpy()) < 0.01).all(-1).mean())


@pytest.mark.parametrize("wrong", [0, 3])
def test_correct_patches_of_a_recovery_are_counted_and_drawn(
    wrong: int, task: tuple[JigClu, Batch], tmp_path: Path
) -> None:
    method, batch = task
    networks = {"untrained": Oracle(method, 0), "trained": Oracle(method, wrong)}
    percent = recovery.recover(networks, method.patches, batch, 7, False, tmp_path)
    mm = method.m**2
    assert percent["recovered_patches"] == 2 * mm * recovery.IMAGES  # all images, IMAGES at a time
    assert percent["recovered_images"] == percent["recovered_images_untrained"] == 100
    assert percent["recovered_places_untrained"] == 100
    assert percent["recovered_places"] == pytest.approx(100 * (1 - 2 * wrong / (mm * recovery.IMAGES)))
    assert percent["recovered_chance"] < 50
    assert percent["recovered_places_chance"] == pytest.approx(percent["recovered_chance"] / mm)
    drawn = tmp_path / "recovery.png"
    picture = imread(drawn)[..., :3]
    side = (picture.shape[0] - 4) // 4
    recovered, truth = (picture[4 + side * row : side * (row + 1)] for row in (2, 3))
    if not wrong:  # the recovered images are the true ones, but for the frames
        framed = (abs(recovered - torch.tensor(neighbours.RIGHT).numpy()) < 0.01).all(-1)
        assert framed.mean() < 0.3 and (abs(recovered - truth)[~framed] < 1e-6).all()
    assert share(drawn, neighbours.RIGHT) > 0.02 and share(drawn, neighbours.WRONG) < 0.001
    assert (share(drawn, recovery.ELSEWHERE) > 0.002) == bool(wrong)


def test_an_untrained_network_recovers_little_and_is_not_changed(task: tuple[JigClu, Batch], tmp_path: Path) -> None:
    method, batch = task
    method.network.train()
    before = {name: value.clone() for name, value in method.network.state_dict().items()}
    draws = torch.random.get_rng_state()
    percent = method.final_metrics(batch, 7, tmp_path)
    assert percent["recovered_places"] < 60
    assert percent["recovered_images"] == percent["recovered_images_untrained"]  # the same initial weights
    assert torch.equal(torch.random.get_rng_state(), draws)
    assert method.network.training and all(torch.equal(before[k], v) for k, v in method.network.state_dict().items())


def test_accuracy_by_class_adds_up_to_the_accuracy(tmp_path: Path) -> None:
    labels, right = torch.tensor([0, 0, 1, 1, 1, 3]), torch.tensor([True, False, True, True, False, True])
    counts = metrics.by_class(right, labels, 4)
    assert counts.tolist() == [[1, 2, 0, 1], [2, 3, 0, 1]]
    neighbours.write_classes(tmp_path / "per_class.csv", ["a", "b, c", "d", "e"], counts)
    assert (tmp_path / "per_class.csv").read_text().splitlines() == [
        *("class,images,top1", "a,2,50.00", '"b, c",3,66.67', "d,0,", "e,1,100.00")
    ]


def test_neighbours_are_framed_by_their_class(tmp_path: Path) -> None:
    dataset = open_dataset(DataConfig(name="scenes", canvas=32, train_images=20, val_images=40), "val")
    labels = torch.from_numpy(dataset.labels)
    neighbours.neighbours(tmp_path / "right.png", dataset, torch.eye(len(dataset.classes))[labels], labels)
    neighbours.neighbours(tmp_path / "wrong.png", dataset, torch.eye(len(dataset))[:, torch.randperm(40)], labels)

    right, wrong = tmp_path / "right.png", tmp_path / "wrong.png"
    assert share(right, neighbours.RIGHT) > share(wrong, neighbours.RIGHT)
    assert share(wrong, neighbours.WRONG) > share(right, neighbours.WRONG)


def test_usage_is_of_this_process() -> None:
    usage = Usage(CPU)
    total = sum(range(3_000_000))
    percent = usage()
    assert total and percent["system/cpu_percent"] > 20 and percent["system/memory_mb"] > 50
    assert not any("gpu" in name for name in percent)


def test_a_failing_figure_loses_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = JobFolder(tmp_path / "linear" / "a").create()

    def failing(*given: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(neighbours, "write_classes", failing)
    dataset = open_dataset(DataConfig(name="scenes", canvas=32, train_images=20, val_images=10), "val")
    neighbours.draw_evaluation(folder, dataset, torch.ones(2, len(dataset.classes)))
    assert "no space left" in caplog.text
