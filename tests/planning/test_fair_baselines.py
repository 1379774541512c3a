"""Every method at rates of its own: by data set at scale paper, by batch at the small scales; Table 3's Supervised as S4L's."""

from __future__ import annotations

from typing import Any

import pytest

from jigclu.data.catalog import expected_images
from jigclu.methods.moco import groups
from jigclu.patches import Box, split_boxes
from orchestrate.planning import experiments
from orchestrate.planning.plan import Job, make_plan

SMALL_SCALES = ("mini", "small")


def planned(tables: str, scale: str = "paper") -> list[Job]:
    return list(make_plan(experiments.find(tables.split()), scale, "official").jobs.values())


def configs(tables: str, stage: str, scale: str = "paper") -> dict[tuple[str, str], Any]:
    """By (label without what differs from its usual settings, data)."""
    found = {}
    for job in planned(tables, scale):
        if job.stage == stage:
            data = "/".join(filter(None, (job.config.data.name, getattr(job.config.data, "subset", None))))
            words = [word for word in job.label.split() if "=" not in word or word.startswith("m=")]
            found[" ".join(words), data] = job.config
    return found


@pytest.mark.parametrize("method", ["moco v2", "simclr"])
def test_a_tenth_of_imagenet_has_the_rates_of_imagenet_100(method: str) -> None:
    """The two sets are equally large (fidelity: 0.03 instead of 0.06 costs MoCo v2 nine points on ImageNet-100)."""
    training, probe = configs("table2", "pretrain"), configs("table2", "linear")
    sets = ("imagenet100", "imagenet1k/10percent")
    assert [training[method, data].optimizer.lr for data in sets] == [0.06, 0.06]
    first, second = (probe[method, data] for data in sets)
    assert (first.lr, first.other_lrs) == (second.lr, second.other_lrs)


def test_every_method_is_probed_at_its_own_rate_and_all_have_the_same_sweep() -> None:
    probes = configs("table1 table2", "linear")
    rates = {key: config.lr for key, config in probes.items()}
    assert rates["moco", "imagenet1k"] == rates["moco v2", "imagenet1k"] == 30.0
    assert rates["moco v2", "imagenet100"] == 10.0  # better than 30 there (protocols.md §3.3)
    assert (rates["simclr", "imagenet1k"], rates["simclr", "imagenet100"]) == (0.1, 1.0)
    assert (rates["m=2", "imagenet1k"], rates["m=2", "imagenet100"]) == (10.0, 1.0)
    unsupervised = [config for (label, _), config in probes.items() if label not in ("supervised", "random init")]
    assert {tuple(sorted({config.lr, *config.other_lrs})) for config in unsupervised} == {(0.1, 1.0, 10.0, 30.0)}


def test_table_3s_supervised_has_s4ls_settings() -> None:
    """S4L config/supervised_imagenet_{1p,10p}.sh: epochs, rate, decay, where the rate falls."""
    found = configs("table3", "finetune")
    one, ten = (found["random init", f"imagenet1k/{subset}"] for subset in ("1percent", "10percent"))
    assert (one.lr, one.weight_decay, one.epochs, one.milestone_epochs) == (0.01, 0.01, 1000, (700, 800, 900))
    assert (ten.lr, ten.weight_decay, ten.epochs, ten.milestone_epochs) == (0.1, 0.001, 200, (140, 160, 180))
    assert (one.gamma, one.batch_size, one.head_lr, ten.head_lr) == (0.1, 256, None, None)


def test_the_other_rows_of_table_3_have_the_released_commands_rates() -> None:
    jobs = [job for job in planned("table3") if job.stage == "finetune" and job.label != "random init"]
    found = {(job.label, job.config.data.subset, job.config.epochs, job.config.lr, job.config.head_lr) for job in jobs}  # type: ignore[union-attr]
    assert found == {
        (label, subset, epochs, lr, head if epochs == 20 else None)
        for label in ("m=2", "moco v2")
        for subset, lr, head in (("1percent", 0.02, 5.0), ("10percent", 0.01, 0.2))
        for epochs in (100, 20)
    }


@pytest.mark.parametrize("scale", ["mini", "small", "smoke"])
def test_rates_of_the_baselines_are_theirs_times_batch_over_256(scale: str) -> None:
    training = configs("table1 table2 table5", "pretrain", scale)
    for (label, _), config in training.items():
        share = config.batch_size / 256
        if label == "supervised":
            assert config.optimizer.lr == pytest.approx(0.1 * share, rel=0.05)
        elif label.split()[0] in ("moco", "simclr") and scale != "smoke":
            assert config.optimizer.lr == pytest.approx(0.06 * share)
    scratch = [config for (label, _), config in configs("table3", "finetune", scale).items() if label == "random init"]
    assert scratch and all(config.lr == pytest.approx(0.1 * config.batch_size / 256, rel=0.05) for config in scratch)


@pytest.mark.parametrize("scale", ["mini", "small", "smoke"])
def test_mocos_momentum_queue_and_groups_suit_a_small_scale(scale: str) -> None:
    for (label, data), config in configs("table1 table2", "pretrain", scale).items():
        if not label.startswith("moco") or (scale == "smoke" and data.endswith("10percent")):  # 10 steps rank nothing
            continue
        images = expected_images(config.data, "train")
        steps, method = config.epochs * (images // config.batch_size), config.method
        assert 1 / (1 - method.momentum) < 0.2 * steps, "else the key encoder stays near its initial weights"
        assert config.batch_size / groups(config.batch_size, method.shuffle_groups) >= 25
        assert "10percent" in data or config.batch_size <= method.queue < images / 2


@pytest.mark.parametrize("scale", SMALL_SCALES)
def test_a_tenth_of_the_set_is_trained_for_as_many_steps_as_the_whole(scale: str) -> None:
    training = configs("table2", "pretrain", scale)
    steps = {key: c.epochs * (expected_images(c.data, "train") // c.batch_size) for key, c in training.items()}
    for method in {label for label, _ in steps}:
        whole, tenth = steps[method, "imagenette"], steps[method, "imagenette/10percent"]
        assert tenth == pytest.approx(whole, rel=0.05), (method, "the epochs under for_data follow pretrain.epochs")


@pytest.mark.parametrize("scale", SMALL_SCALES)
def test_an_encoder_has_one_probe_rate_at_a_small_scale(scale: str) -> None:
    jobs = [job for job in planned("table1 table2 table7 table8 table9 figure4", scale) if job.stage == "linear"]
    assert len({(job.config.lr, job.config.other_lrs) for job in jobs}) == 1  # type: ignore[union-attr]


def overlap(one: Box, other: Box) -> float:
    """Share of the smaller box that the two have in common."""
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    area = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return max(0, width) * max(0, height) / area


def test_m_3_and_4_also_reach_as_far_past_their_cell_as_m_2() -> None:
    """The numbers in the register: size of the largest patch, and what two patches share on average, of 300 pixels."""
    found = {}
    for job in planned("table8"):
        if job.stage == "pretrain":
            method: Any = job.config.method  # type: ignore[union-attr]
            boxes = split_boxes(300, 300, method.m, method.reach)
            pairs = [overlap(one, other) for i, one in enumerate(boxes) for other in boxes[:i]]
            largest = max(box[2] - box[0] for box in boxes) / 300
            found[method.m, method.extend_of] = round(100 * largest), round(100 * sum(pairs) / len(pairs))
            assert method.reach == pytest.approx(0.3 if method.extend_of == "image" else 0.6 / method.m)
    assert found == {
        (2, "image"): (80, 69),
        (3, "image"): (93, 65),
        (4, "image"): (80, 55),
        (3, "cell"): (73, 40),
        (4, "cell"): (55, 23),
    }
