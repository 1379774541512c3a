"""SimCLR, MoCo and supervised training: their losses by independent formulas, MoCo's queue and key encoder, a run of each."""

from __future__ import annotations

import math
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet18

from jigclu import counter_rng, methods
from jigclu.config import ConfigError, PretrainConfig, parse
from jigclu.config.methods import METHODS
from jigclu.data.canvases import open_dataset
from jigclu.data.loader import Batch, Unreadable, batches
from jigclu.job_folder import JobFolder
from jigclu.losses import top1_percent_strict
from jigclu.methods import moco as moco_module
from jigclu.methods.base import Method
from jigclu.methods.moco import MoCo, MoCoNetwork
from jigclu.methods.simclr import SimCLR
from jigclu.methods.supervised import Supervised
from jigclu.network import Backbone
from jigclu.stages import pretrain
from jigclu.training import interrupt
from jigclu.training.distributed import RankInfo

HERE = RankInfo(0, 1, torch.device("cpu"))
SETTINGS: dict[str, dict[str, Any]] = {
    "simclr": {"name": "simclr", "dim": 16},
    "moco": {"name": "moco", "dim": 16, "queue": 20, "shuffle_groups": 4},
    "supervised": {"name": "supervised"},
    "jigclu": {"name": "jigclu", "input": "small", "augment": "during"},
}


def config(method: dict[str, Any], **over: Any) -> PretrainConfig:
    values = {
        "data": {"name": "scenes", "canvas": 32, "train_images": 40, "val_images": 10},
        "backbone": "resnet18",
        "method": method,
        "image_size": 32,
        "batch_size": 8,
        "epochs": 2,
        "runtime": {"device": "cpu", "threads": 1, "workers": 0, "log_every": 1, "checkpoint_minutes": 10},
    }
    return parse("pretrain", {**values, **over})


def moco(**method: Any) -> MoCo:
    torch.manual_seed(0)
    return MoCo(config({**SETTINGS["moco"], **method}), 3, HERE)


@pytest.fixture(scope="module")
def batch() -> Batch:
    dataset = open_dataset(config(SETTINGS["moco"]).data, "train")
    return next(batches(dataset, [list(range(8))], 0, Unreadable(), substitute=True))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


# -- losses ----------------------------------------------------------------------------------------------------------


def test_simclrs_loss_is_nt_xent_written_out() -> None:
    torch.manual_seed(1)
    method = SimCLR(config({**SETTINGS["simclr"], "temperature": 0.1}), 0, HERE)
    z = np.random.RandomState(0).standard_normal((10, 6))
    z[5:] += 2 * z[:5]  # views of five images
    terms, first = [], 0
    for i in range(10):
        other = (i + 5) % 10
        near = {k: cosine(z[i], z[k]) / 0.1 for k in range(10) if k != i}
        terms.append(math.log(sum(math.exp(value) for value in near.values())) - near[other])
        first += max(near, key=near.__getitem__) == other
    loss, logged = method.objective(torch.from_numpy(z))
    assert loss.dtype == torch.float64 and loss.item() == pytest.approx(np.mean(terms), rel=1e-12)
    assert logged["loss"] == loss and logged["contrastive_accuracy"] == 10 * first
    assert 0 < first < 10


def test_mocos_loss_is_info_nce_written_out() -> None:
    method = moco(temperature=0.2)
    method.network.double()
    rs = np.random.RandomState(0)
    queries, keys, queue = (rs.standard_normal(shape) for shape in ((8, 16), (8, 16), (20, 16)))
    queries += keys
    keys, queue = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (keys, queue))
    method.network.queue.copy_(torch.from_numpy(queue))
    terms, first = [], 0
    for q, k in zip(queries, keys, strict=True):
        positive, negatives = cosine(q, k) / 0.2, [cosine(q, other) / 0.2 for other in queue]
        terms.append(math.log(math.exp(positive) + sum(map(math.exp, negatives))) - positive)
        first += positive > max(negatives)
    loss, logged = method.objective(torch.from_numpy(queries), torch.from_numpy(keys))
    assert loss.dtype == torch.float64 and loss.item() == pytest.approx(np.mean(terms), rel=1e-12)
    assert logged["loss"] == loss and logged["contrastive_accuracy"].item() == pytest.approx(100 * first / 8)


def test_the_supervised_loss_is_cross_entropy_written_out() -> None:
    torch.manual_seed(1)
    method = Supervised(config(SETTINGS["supervised"]), 0, HERE, 5)
    logits, labels = np.random.RandomState(0).standard_normal((8, 5)), [0, 4, 2, 2, 1, 3, 0, 4]
    terms = [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(logits, labels, strict=True)]
    right = sum(int(row.argmax()) == label for row, label in zip(logits, labels, strict=True))
    loss, logged = method.objective(torch.from_numpy(logits), torch.tensor(labels))
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-12)
    assert logged["accuracy"].item() == pytest.approx(100 * right / 8)  # type: ignore[union-attr]


def test_a_collapsed_encoder_ranks_nothing_first() -> None:
    assert top1_percent_strict(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)) == 0
    assert top1_percent_strict(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 75


# -- what they are fed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["simclr", "moco", "supervised"])
def test_views_are_each_images_own_and_shown_by_image(batch: Batch, name: str) -> None:
    torch.manual_seed(0)
    method = methods.build(config(SETTINGS[name]), 3, HERE, 10)
    prepared, picked = method.prepare(batch, 1, 0), Batch(*(field[[5, 2]] for field in batch))
    views = 1 if name == "supervised" else 2
    images = prepared[0].view(views, 8, 3, 32, 32)
    alone = method.prepare(picked, 1, 0)[0].view(views, 2, 3, 32, 32)
    torch.testing.assert_close(alone, images[:, [5, 2]], rtol=0, atol=2e-5)
    assert views == 1 or not torch.equal(images[0], images[1])
    shown = method.picture(prepared)
    assert shown.shape == (8 * views, 3, 32, 32) and shown.min() >= 0 and shown.max() <= 1
    own = images[:, 5].reshape(views, -1)
    seen = shown[5 * views : 6 * views].reshape(views, -1)
    assert all(torch.corrcoef(torch.stack(pair))[0, 1] > 0.9 for pair in zip(own, seen, strict=True))


# -- MoCo ------------------------------------------------------------------------------------------------------------


def test_the_key_encoder_starts_as_the_querys_copy_and_follows_it(batch: Batch) -> None:
    method = moco(momentum=0.9)
    network = method.network
    names = [name for name, _ in network.query.named_parameters()]
    assert names == [name for name, _ in network.key.net.named_parameters()]
    assert all(torch.equal(k, q) for k, q in zip(network.key.parameters(), network.query.parameters(), strict=True))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for step in range(2):
        before = [key.double().clone() for key in network.key.parameters()]
        queries = [query.detach().double().clone() for query in network.query.parameters()]
        loss, _ = method.loss(network, method.prepare(batch, 0, step))
        for name, key, old, query in zip(names, network.key.parameters(), before, queries, strict=True):
            torch.testing.assert_close(key.double(), 0.9 * old + 0.1 * query, rtol=0, atol=1e-6, msg=name)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(key.grad is None and not key.requires_grad for key in network.key.parameters())
    assert all(query.grad is not None for query in network.query.parameters())
    moved = [not torch.equal(k, q) for k, q in zip(network.key.parameters(), network.query.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2


def test_the_queue_holds_the_newest_keys_in_order_and_wraps() -> None:
    network = MoCoNetwork("resnet18", 4, True, 20)
    torch.testing.assert_close(network.queue.norm(dim=1), torch.ones(20))
    expected = list(network.queue.clone())
    for step in range(5):  # 40 keys into 20 places, 8 at a time: the third step runs over the end
        keys = F.normalize(torch.randn(8, 4), dim=1)
        network.enqueue(keys)
        for i, key in enumerate(keys):
            expected[(8 * step + i) % 20] = key
        assert torch.equal(network.queue, torch.stack(expected))
        assert network.pointer == 8 * (step + 1) % 20


def test_a_steps_loss_uses_the_queue_before_its_own_keys(batch: Batch) -> None:
    method = moco()
    before = method.network.queue.clone()
    prepared = method.prepare(batch, 0, 0)
    _, logged = method.loss(method.network, prepared)
    written = method.network.queue.clone()
    assert torch.equal(written[8:], before[8:]) and not torch.equal(written[:8], before[:8])
    # the network has not been trained yet and momentum keeps a copy a copy: the same keys come again
    keys = method.keys(prepared[0][8:], prepared[1])
    torch.testing.assert_close(written[:8], keys)
    method.network.queue.copy_(before)
    queries = method.network(prepared[0][:8])
    assert method.objective(queries, keys)[0].item() == pytest.approx(float(logged["loss"]), rel=1e-5)


@pytest.mark.parametrize("parts", [1, 4])
def test_shuffled_keys_stay_with_their_images(batch: Batch, parts: int) -> None:
    """Each random part has its own batch statistics, and the keys are in the order of their images."""
    method = moco(shuffle_groups=parts)
    images, order = method.prepare(batch, 0, 0)
    keys = method.keys(images[8:], order)
    assert order.tolist() != list(range(8))
    for part in order.view(parts, -1).tolist():
        torch.testing.assert_close(keys[part], F.normalize(method.network.key(images[8:][part]), dim=1))
    unshuffled = F.normalize(method.network.key(images[8:]), dim=1)
    assert torch.allclose(keys, unshuffled, atol=1e-4) == (parts == 1)


def test_without_batch_statistics_shuffling_changes_no_key(batch: Batch) -> None:
    method = moco()
    for module in method.network.key.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    images, order = method.prepare(batch, 0, 0)
    torch.testing.assert_close(
        method.keys(images[8:], order), F.normalize(method.network.key(images[8:]), dim=1), rtol=0, atol=1e-5
    )


def test_the_shuffle_is_drawn_per_step_from_a_separate_stream(batch: Batch) -> None:
    method = moco()
    orders = [method.prepare(batch, epoch, step)[1].tolist() for epoch, step in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert orders[0] == orders[3] and len({tuple(order) for order in orders}) == 3
    purposes = [
        value
        for name, value in vars(counter_rng).items()
        if name.isupper() and name[0] != "_" and isinstance(value, int)
    ]
    assert counter_rng.KEYS in purposes and len(set(purposes)) == len(purposes)


@pytest.mark.parametrize(
    ("size", "wanted", "parts"), [(256, 8, 8), (8, 8, 4), (10, 8, 5), (14, 8, 7), (7, 8, 1), (2, 8, 1)]
)
def test_a_batch_is_shuffled_in_equal_parts_of_two_or_more(size: int, wanted: int, parts: int) -> None:
    assert moco_module.groups(size, wanted) == parts


def test_settings_that_do_not_fit_are_rejected_in_one_line() -> None:
    with pytest.raises(ConfigError, match="queue 7 is smaller than batch_size 8") as error:
        moco(queue=7)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"4 groups of a batch of 8 are not divisible by 3 ranks"):
        MoCo(config(SETTINGS["moco"]), 0, RankInfo(0, 3, torch.device("cpu")))


def test_every_config_has_an_implementation() -> None:
    assert methods.METHODS.keys() == METHODS.keys()
    assert all(issubclass(pkgutil.resolve_name(path), Method) for path in methods.METHODS.values())


def test_versions_differ_by_the_head() -> None:
    first, second = moco(version=1).network.query.head, moco(version=2).network.query.head
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Sequential)
    assert [type(layer) for layer in second] == [nn.Linear, nn.ReLU, nn.Linear]
    assert first.weight.shape == (16, 512)
    assert second[0].weight.shape == (512, 512) and second[2].weight.shape == (16, 512)


def test_the_state_dict_is_all_of_mocos_state(batch: Batch) -> None:
    """A network restored from another's state continues like it, to the bit: loss, keys, queue."""
    source, restored = moco(), moco()
    with torch.no_grad():
        for parameter in restored.network.parameters():
            parameter.add_(1)
    for step in range(3):
        source.loss(source.network, source.prepare(batch, 0, step))
    restored.network.load_state_dict(source.network.state_dict())
    assert restored.network.pointer == 4
    losses = [each.loss(each.network, each.prepare(batch, 0, 3))[0].item() for each in (source, restored)]
    assert losses[0] == losses[1]
    expected, actual = source.network.state_dict(), restored.network.state_dict()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


# -- runs ------------------------------------------------------------------------------------------------------------


def job(path: Path) -> JobFolder:
    folder = JobFolder(path).create()
    folder.update_job(seed=1)
    return folder


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_run_writes_an_encoder_metrics_and_a_figure(tmp_path: Path, name: str) -> None:
    folder = job(tmp_path / "pretrain" / name)
    result = pretrain.run(config(SETTINGS[name]), folder.path)
    assert folder.result == result and folder.status["state"] == "done"
    weights = torch.load(folder.path / "encoder.pt", weights_only=True)
    assert weights.keys() == {key for key in resnet18().state_dict() if not key.startswith("fc.")}
    Backbone("resnet18").resnet.load_state_dict(weights)
    metrics = result["metrics"]
    wanted = {"simclr": "contrastive_accuracy", "moco": "contrastive_accuracy", "supervised": "accuracy"}
    assert math.isfinite(metrics["loss"]) and 0 <= metrics[wanted.get(name, "location_accuracy")] <= 100
    assert 0 < metrics["hours"] * 3600 <= result["seconds"] + 0.01  # which also counts the writing of encoder.pt
    assert 100 < metrics["peak_memory_mb"] < 20_000 and result["memory_kind"] == "resident"
    assert 0 < metrics["loader_wait"] < 1
    assert result["limiter"] == ("loader" if metrics["loader_wait"] > 0.1 else "compute")
    assert [line["step"] for line in folder.metrics()] == list(range(1, 11))
    with Image.open(folder.path / "figures" / "inputs.png") as picture:
        assert min(picture.size) >= 32


def test_an_interrupted_moco_ends_bit_equal(tmp_path: Path) -> None:
    whole, stopped = job(tmp_path / "pretrain" / "a"), job(tmp_path / "pretrain" / "b")
    settings = config(SETTINGS["moco"], epochs=1)
    pretrain.run(settings, whole.path)
    interrupt.request()
    with pytest.raises(interrupt.Interrupted):
        pretrain.run(settings, stopped.path)
    interrupt.clear()
    pretrain.run(settings, stopped.path)
    actual, theirs = (torch.load(each.path / "encoder.pt", weights_only=True) for each in (whole, stopped))
    assert all(torch.equal(actual[name], theirs[name]) for name in actual)
    curves: list[list[Tensor]] = [[line["loss"] for line in each.metrics()] for each in (whole, stopped)]
    assert curves[0] == curves[1]


def test_time_and_memory_are_those_of_all_attempts(tmp_path: Path) -> None:
    """A resumed job adds its waiting to the checkpoint's, and its peak memory is at least the checkpoint's."""
    folder = job(tmp_path / "pretrain" / "c")
    settings = config(SETTINGS["supervised"], epochs=1)
    interrupt.request()
    with pytest.raises(interrupt.Interrupted):
        pretrain.run(settings, folder.path)
    interrupt.clear()
    checkpoints = pretrain.Session(folder.path, settings.runtime).checkpoints
    saved = checkpoints.latest()
    assert saved and 0 < saved["waited"] < saved["seconds"] and saved["peak_memory_mb"] > 100
    checkpoints.save(saved.pop("step"), {**saved, "waited": 500.0, "seconds": 1000.0, "peak_memory_mb": 1e6})
    metrics = pretrain.run(settings, folder.path)["metrics"]
    assert metrics["hours"] == pytest.approx(1000 / 3600, rel=0.05)
    assert metrics["loader_wait"] == pytest.approx(0.5, abs=0.05) and metrics["peak_memory_mb"] == 1e6
