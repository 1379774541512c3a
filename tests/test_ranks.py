"""Several processes are one: same montages, losses, gradients and weights as one process with the same global batch."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from jigclu import methods, random
from jigclu.config import PretrainConfig, parse
from jigclu.data.datasets import open_dataset
from jigclu.data.loader import Unreadable, batches
from jigclu.data.order import epoch_groups
from jigclu.montage import exchange, stitch
from jigclu.stages import pretrain
from jigclu.training.distributed import distribute, place
from jigclu.training.folder import JobFolder


def config(m: int = 2, **over: Any) -> PretrainConfig:
    values = {
        "data": {"name": "scenes", "canvas": 48, "train_images": 40, "val_images": 10},
        "backbone": "resnet18",
        "method": {"m": m},
        "image_size": 48,
        "batch_size": 8,
        "epochs": 1,
        "runtime": {"device": "cpu", "threads": 1, "workers": 0, "log_every": 1},
    }
    return parse("pretrain", {**values, **over})


def _enter(rank: int, world: int, port: int, task: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        task(*args)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def on_ranks(world: int, task: Callable[..., None], *args: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_enter, (world, port, task, args), nprocs=world)


def _exchange(out: Path, m: int) -> None:
    where = place("cpu", 1)
    local, total = 3, 3 * where.world
    ids = torch.arange(m * m * total, dtype=torch.float32).view(m * m, total)
    mine = ids[:, where.rank * local : (where.rank + 1) * local].reshape(-1, 1, 1, 1)
    order = random.permutation(5, random.MONTAGE, 0, 1, m * m * total)
    wanted = stitch(ids.view(-1, 1, 1, 1), order, m)[where.rank * local : (where.rank + 1) * local]
    assert torch.equal(exchange(mine, order, m), wanted)
    (out / str(where.rank)).touch()


@pytest.mark.parametrize(("world", "m"), [(2, 2), (3, 3)])
def test_exchange_gives_each_rank_its_montages(tmp_path: Path, world: int, m: int) -> None:
    on_ranks(world, _exchange, tmp_path, m)
    assert len(list(tmp_path.iterdir())) == world


def _one_step(out: Path, m: int) -> None:
    where, settings = place("cpu", 1), config(m)
    torch.manual_seed(0)
    method = methods.build(settings, 0, where)
    network = distribute(method.network.double(), where)
    dataset = open_dataset(settings.data, "train")
    groups = epoch_groups(0, 0, len(dataset), settings.batch_size, rank=where.rank, world=where.world)
    batch = next(batches(dataset, groups, 0, Unreadable(), substitute=True))
    prepared = method.prepare(batch, 0, 0)
    loss, logged = method.loss(network, (prepared[0].double(), *prepared[1:]))
    loss.backward()
    state = {
        "losses": torch.tensor([float(value) for value in logged.values()]),
        **{f"grad {name}": p.grad for name, p in method.network.named_parameters()},
        **dict(method.network.named_buffers()),
    }
    torch.save(state, out / f"{where.world}-{where.rank}.pt")


@pytest.mark.parametrize("m", [2, 3])
def test_two_ranks_have_the_losses_and_gradients_of_one(tmp_path: Path, m: int) -> None:
    """The objective runs in float32, the network in float64: tolerances are float32's in the loss."""
    on_ranks(2, _one_step, tmp_path, m)
    _one_step(tmp_path, m)
    one, *two = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for other in two:
        assert one.keys() == other.keys()
        for name, value in one.items():
            scale = value.double().norm().clamp(min=1e-6)
            assert (value.double() - other[name].double()).norm() / scale < 1e-5, name


def _train(out: Path) -> None:
    # A small rate: at the real one, batch norm over 8 images blows rounding up a thousandfold within five steps.
    pretrain.run(config(optimizer={"lr": 1e-4}), out)


def test_two_ranks_train_to_the_weights_of_one(tmp_path: Path) -> None:
    folders = {}
    for name in ("one", "two"):
        folders[name] = JobFolder(tmp_path / "pretrain" / name).create()
        folders[name].update_job(seed=3)
    torch.manual_seed(3)
    torch.save(methods.build(config(), 3, place("cpu", 1)).encoder_state_dict(), folders["one"].path / "start.pt")
    on_ranks(2, _train, folders["two"].path)
    _train(folders["one"].path)
    one, two = (torch.load(folder.path / "encoder.pt", weights_only=True) for folder in folders.values())
    start = torch.load(folders["one"].path / "start.pt", weights_only=True)
    for name, value in one.items():
        moved = (value.double() - start[name]).norm()
        assert (value.double() - two[name]).norm() <= 0.02 * moved + 1e-6, name
    assert folders["two"].result["world"] == 2
    losses = [[line["loss"] for line in folder.metrics()] for folder in folders.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="does not divide by 3 ranks"):
        epoch_groups(0, 0, 100, 8, rank=0, world=3)
