"""Mistakes in a command's settings and in cluster files: one line that names the valid choices."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.orchestrator import refused

MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "no experiment": ([], ["which experiment?", "table8", "all"]),
    "experiment": (["tabel8"], ["'tabel8'", "valid: all, augmentation", "did you mean table8?"]),
    "scale": (["table8", "--scale", "papr"], ["'papr'", "mini, paper, small, smoke", "did you mean paper?"]),
    "protocol": (["m", "--protocol", "offical"], ["'offical'", "official, paper", "did you mean official?"]),
    "cluster": (["m", "--cluster", "slrum"], ["'slrum'", "local, slurm", "did you mean slurm?", "YAML"]),
    "seeds": (["m", "--seeds", "0"], ["--seeds must be at least 1, not 0"]),
    "no stage": (["m", "--set", "epochs=3"], ["'epochs=3'", "stage.key=value"]),
    "no value": (["m", "--set", "pretrain.epochs"], ["'pretrain.epochs'", "stage.key=value"]),
    "not YAML": (["m", "--set", "linear.milestones=[1"], ["linear.milestones=[1", "not a YAML value"]),
    "stage": (["m", "--set", "pretrian.epochs=3"], ["'pretrian'", "valid: dense, detect, finetune, knn", "did you mean pretrain?"]),
    "unused stage": (["m", "--set", "knn.k=3"], ["'knn'", "table8", "valid: linear, pretrain"]),
    "key": (["m", "--set", "pretrain.epoch=3"], ["pretrain.epoch;", "batch_size", "did you mean epochs?"]),
    "nested key": (["m", "--set", "pretrain.method.dims=3"], ["pretrain.method.dims", "temperature", "did you mean dim?"]),
    "type": (["m", "--set", "pretrain.epochs=ten"], ["pretrain.epochs", "a whole number is expected", "'ten'"]),
    "data is no name": (["m", "--set", "linear.data=imagenette"], ["linear.data", "imagenette"]),
    "data name is no text": (["m", "--set", "pretrain.data.name=[1]"], ["pretrain.data.name"]),
    "date": (["m", "--set", "pretrain.epochs=2026-01-01"], ["2026-01-01", "date"]),
    "another method's": (["table2", "--set", "pretrain.method.queue=9"], ["pretrain.method.queue", "valid: ", "table2 SimCLR"]),
    "choice": (["m", "--set", "linear.backbone=vgg"], ["linear.backbone", "valid: resnet10, ", "resnet152", "'vgg'"]),
    "what the cells are": (["m", "--set", "pretrain.method.m=2"], ["pretrain.method.m", "cells of table8 differ"]),
    "two backbones": (["m", "--set", "linear.backbone=resnet34"], ["linear", "resnet34", "resnet50", "pretraining trains"]),
    "range": (["m", "--set", "pretrain.method.extend=2"], ["pretrain.method.extend", "0.5", "got 2"]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_valid_choices(mistake: str, tmp_path: Path) -> None:
    words, expected = MISTAKES[mistake]
    refused(tmp_path / "runs", words, *expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind: slurm\npartitoin: gpu\n", ["unknown key partitoin", "account", "did you mean partition?"]),
        ("kind: pbs\n", ["kind: 'pbs'", "valid: local, slurm"]),
        ("partition: gpu\n", ["kind"]),
        ("kind: local\nminutes: long\n", ["minutes: a whole number is expected"]),
        ("kind: local\npartition: gpu\n", ["partition is for SLURM", "--jobs sets how many"]),
        ("kind: [local\n", ["cluster.yaml:2", "not YAML"]),
        ("- local\n", ["expected a mapping"]),
    ],
)
def test_a_mistake_in_a_cluster_file_is_one_line_too(text: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(text)
    refused(tmp_path / "runs", ["table8", "--cluster", "cluster.yaml"], "cluster.yaml", *expected)


def test_choosing_slurm_without_sbatch_suggests_local(tmp_path: Path) -> None:
    refused(tmp_path / "runs", ["table8", "--cluster", "slurm"], "no sbatch", "--cluster local", PATH=str(tmp_path))
