"""Planning: job ids and names, the layers of a config, and error messages for users' mistakes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.orchestrator import ROOT, cpu_seconds, environment, refused, run

from jigclu.config import STAGES, Strict, identity
from jigclu.data.catalog import expected_images
from orchestrate.planning import experiments, overlays
from orchestrate.planning.experiments import Cell, Experiment
from orchestrate.planning.plan import Job, Plan, make_plan
from orchestrate.planning.resolve import parse_sets, resolve

LAZY = f"""
import runpy, sys
try:
    runpy.run_path({str(ROOT / "orchestrate" / "run.py")!r}, run_name="__main__")
except SystemExit as end:
    print("exit", end.code, sorted({{"torch", "mlflow", "submitit", "pandas"}} & set(sys.modules)))
"""


def planned(*sets: str, scale: str = "paper", protocol: str = "official", seeds: int = 1) -> Plan:
    return make_plan(experiments.find(["table8"]), scale, protocol, seeds, parse_sets(sets))


def job_of(plan: Plan, stage: str, label: str) -> Job:
    (found,) = [job for job in plan.jobs.values() if (job.stage, job.label, job.seed) == (stage, label, 0)]
    return found


def leaves(config: Strict, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name in type(config).model_fields:
        value = getattr(config, name)
        yield from leaves(value, (*path, name)) if isinstance(value, Strict) else [(*path, name)]


def changed(config: Any, path: tuple[str, ...]) -> Any:
    """The config with another value at that path."""
    name, *rest = path
    value = getattr(config, name)
    if rest:
        other = changed(value, tuple(rest))
    elif isinstance(value, str):
        other = value + "x"
    elif isinstance(value, tuple):
        other = (*value, 7)
    else:
        other = 7 if value is None else value + 1
    return config.model_copy(update={name: other})


# -- ids and names ---------------------------------------------------------------------------------------------
def test_ids_are_the_same_in_every_process() -> None:
    code = "import json; from orchestrate.planning import experiments as e, plan as p; "
    code += "print(json.dumps(list(p.make_plan(e.find(['table8']), 'paper', 'official').jobs)))"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment(ROOT, PYTHONHASHSEED=seed), capture_output=True
        ).stdout
        for seed in ("1", "2")
    ]
    ids = list(planned().jobs)
    assert [json.loads(text) for text in outputs] == [ids, ids]
    assert all(len(name) == 12 and set(name) <= set("0123456789abcdef") for name in ids)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("stage", STAGES)
def test_every_field_but_runtime_is_in_the_id(stage: str) -> None:
    config = STAGES[stage]()
    job = Job(stage, config, ("0123456789ab",), 0, "m=2", "paper", "official")
    ids = {path: dataclasses.replace(job, config=changed(config, path)).id for path in leaves(config)}
    transient = {path for path in ids if ids[path] == job.id}
    assert transient == {path for path in ids if path[0] == "runtime"} != set()
    assert len(set(ids.values())) == len(ids) - len(transient) + 1


def test_seed_upstream_and_stage_are_in_the_id_but_names_are_not() -> None:
    job = job_of(planned(), "linear", "m=2")
    others: list[dict[str, Any]] = [{"seed": 1}, {"upstream": ()}, {"upstream": ("0123456789ab",)}, {"stage": "knn"}]
    assert len({job.id} | {dataclasses.replace(job, **other).id for other in others}) == 5
    assert dataclasses.replace(job, label="x", scale="y", protocol="z", experiments={"table9"}).id == job.id


TABLE8_IDS = {
    "paper": "00459620df33 1cae3930acc2 3448a31eaf4a 41d6b9571e7c b0e64eabc242 d528ea1242e3 d76a53c901c9 "
    "284b0f6cea18 3d6c4b825d34 452a637781e5 b5758b756515 f356430f37c4",
    "mini": "57e545defd47 6d0721d872b4 95aa373e7731 9b233323d68a 9d54df070996 bb7df42dc04f ec1f3fa9ad4b "
    "31e9d4cc53c8 4a505b4e1a47 51680a5e51ba ae621061a4b4 b3beeea11d42",
    "smoke": "09e5e8067874 3d3900c27cf3 5433cbf20443 5d7b9bd83228 d6ae7f77941d df56625d61dc eb9d9dadf318",
}


@pytest.mark.parametrize("scale", TABLE8_IDS)
def test_a_change_of_the_code_does_not_change_the_ids_of_finished_jobs(scale: str) -> None:
    """Else every result in every store would have to be computed again. (Table 8, protocol official, seed 0.)"""
    assert sorted(planned(scale=scale).jobs) == sorted(TABLE8_IDS[scale].split())


def test_equal_configs_have_equal_ids_whatever_layers_they_come_from() -> None:
    ids = set(planned().jobs)
    assert set(planned("linear.lr=1", "pretrain.runtime.workers=3").jobs) == ids
    undone = planned("pretrain.method.extend=0.3", "pretrain.method.loss_scale=official", protocol="paper")
    assert set(undone.jobs) == ids
    renamed = [found.model_copy(update={"name": "table99"}) for found in experiments.find(["table8"])]
    assert set(make_plan(renamed, "paper", "official").jobs) == ids


# -- which jobs are planned ---------------------------------------------------------------------------------------------
def test_a_shared_job_is_planned_once_and_counts_every_cell_that_needs_it() -> None:
    (found,) = experiments.find(["table8"])
    plan = make_plan([found, found.model_copy(update={"name": "table99"})], "paper", "official")
    assert plan.jobs.keys() == planned().jobs.keys()
    assert [job.demand for job in plan.jobs.values()] == [2] * 12 and plan.naive == 24
    assert {frozenset(job.experiments) for job in plan.jobs.values()} == {frozenset({"table8", "table99"})}
    uses = {(use.experiment, use.cell) for use in job_of(plan, "linear", "m=3").uses}
    assert uses == {("table8", "m=3"), ("table99", "m=3")}
    by_three_words = experiments.find(["table8", "m", "table8"])
    assert [experiment.name for experiment in by_three_words] == ["table8"]


def test_upstream_comes_first_and_the_random_cell_has_none() -> None:
    plan = planned()
    order = list(plan.jobs)
    assert all(order.index(up) < order.index(job.id) for job in plan.jobs.values() for up in job.upstream)
    for m in (2, 3, 4):
        assert job_of(plan, "linear", f"m={m}").upstream == (job_of(plan, "pretrain", f"m={m}").id,)
    assert job_of(plan, "linear", "random init").upstream == ()
    assert len(order) == 12  # five pretrainings and their probes, and random weights twice


def test_seeds_repeat_every_cell_and_keep_the_first() -> None:
    one, three = planned(), planned(seeds=3)
    assert len(three.jobs) == 3 * len(one.jobs) and set(one.jobs) < set(three.jobs)
    for job in three.jobs.values():
        assert all(three.jobs[up].seed == job.seed for up in job.upstream)
    assert [job.seed for job in three.jobs.values() if job.stage == "pretrain"] == [0, 1, 2] * 5


def test_overrides_that_change_results_are_the_variant_of_their_cells() -> None:
    plan = planned("pretrain.epochs=5", "linear.runtime.workers=2", "linear.lr=3")
    assert plan.variant == "linear.lr=3 pretrain.epochs=5"
    assert {use.variant for job in plan.jobs.values() for use in job.uses} == {plan.variant}
    assert planned("linear.runtime.workers=2").variant == planned().variant == ""


# -- the layers of a config -----------------------------------------------------------------------------------------
def test_a_later_layer_wins_and_leaves_the_rest() -> None:
    """Schema <- recipe <- scale <- protocol <- --set <- cell; layer n sets the fields n and later ones."""
    fields = ("batch_size", "epochs", "image_size", "optimizer.lr", "method.dim")

    def layer(number: int) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for field in fields[number:]:
            *parents, last = field.split(".")
            leaf = tree
            for parent in parents:
                leaf = leaf.setdefault(parent, {})
            leaf[last] = 10 + number
        return tree

    cell = Cell(key="a", row="r", column="c", report="pretrain.loss", printed=1, set={"pretrain.method.dim": 14})
    stages = resolved(
        cell, {"pretrain": {"backbone": "resnet34", **layer(0)}}, {"pretrain": layer(1)}, {"pretrain": layer(2)},
        {"pretrain.optimizer.lr": 13, "pretrain.method.dim": 13},
    )  # fmt: skip
    config: Any = stages["pretrain"]
    assert (config.batch_size, config.epochs, config.image_size) == (10, 11, 12)
    assert (config.optimizer.lr, config.method.dim) == (13, 14)
    assert (config.backbone, config.optimizer.momentum, config.method.m) == ("resnet34", 0.9, 2)


def resolved(cell: Cell, recipe: dict[str, Any], *layers: Any) -> dict[str, Strict | None]:
    experiment = Experiment(name="x", title="x", source="x", topic="x", unit="x", recipe=recipe, cells=(cell,))
    return resolve(experiment, cell, *layers)


def test_a_share_applies_to_the_value_of_the_layers_below_and_is_at_least_one() -> None:
    for below, share, epochs in ((200, "20%", 40), (6, "20%", 1), (2, "20%", 1), (7, "60%", 4)):
        cell = Cell(key="a", row="r", column="c", report="linear.top1", set={"pretrain.epochs": share})
        stages: Any = resolved(cell, {"pretrain": {}, "linear": {}}, {"pretrain": {"epochs": below}}, {}, {})
        assert stages["pretrain"].epochs == epochs
    schema_default: Any = resolved(cell, {"pretrain": {}, "linear": {}}, {}, {}, {})
    assert schema_default["pretrain"].epochs == 120
    set_below: Any = resolved(cell, {"pretrain": {}, "linear": {}}, {}, {}, {"pretrain.epochs": 10})
    assert set_below["pretrain"].epochs == 6


def test_scale_and_protocol_reach_one_method_or_one_data_set_alone() -> None:
    scale = {
        "methods": {"moco": {"pretrain": {"method": {"queue": 99}}}},
        "for_data": {"cifar10": {"linear": {"image_size": 32}}},
        "datasets": {"cifar10": {"name": "scenes", "canvas": 16}},
    }
    protocol = {"methods": {"jigclu": {"pretrain": {"method": {"extend": 0.1}}}}}
    recipe = {"pretrain": {"data": {"name": "imagenet1k"}}, "linear": {"data": {"name": "cifar10"}}, "finetune": {}}
    for method in ("jigclu", "moco_v2", "simclr", "supervised"):
        cell = Cell(key="a", row="r", column="c", report="linear.top1", method=method)
        stages: Any = resolved(cell, recipe, scale, protocol, {})
        pretrain, probe = stages["pretrain"], stages["linear"]
        assert getattr(pretrain.method, "queue", 99) == 99 and getattr(pretrain.method, "extend", 0.1) == 0.1
        # Another data set inherits nothing from the pretraining: neither canvas nor version.
        assert (probe.data.name, probe.data.canvas, probe.data.version, probe.image_size) == ("scenes", 16, "1", 32)
        cell = Cell(key="a", row="r", column="c", report="finetune.top1", method=method)
        tuned: Any = resolved(cell, recipe, scale, protocol, {})["finetune"]
        assert (tuned.data, tuned.image_size) == (pretrain.data, 224)


def test_the_scales_values_for_one_data_set_reach_cifar_and_the_label_lists() -> None:
    """In the real files: CIFAR keeps its own image size, and a batch fits the smallest list."""
    for scale in overlays.overlays("scales"):
        for job in make_plan(experiments.find(["table5", "table3"]), scale, "official").jobs.values():
            config: Any = job.config
            if getattr(config, "crop", "") == "padded":
                assert (config.image_size, config.resize, config.data.canvas) == (32, 32, 32), (scale, job.name)
            if job.stage == "finetune":
                assert expected_images(config.data, "train") >= config.batch_size, (scale, job.name)


def test_every_point_of_figure_4_has_its_own_pretraining() -> None:
    for scale in overlays.overlays("scales"):
        plan = make_plan(experiments.find(["figure4"]), scale, "official")
        assert len([job for job in plan.jobs.values() if job.stage == "pretrain"]) == 15, scale


def test_the_methods_learning_rates_are_those_of_protocols_md() -> None:
    """protocols.md §1.7, §2.1, §3.3: 0.03, on ImageNet-100 0.06 for the contrastive ones; the probe's by data set."""
    plan = make_plan(experiments.find(["table1", "table2", "table5"]), "paper", "official")
    rates = {
        (job.label, job.config.data.name): job.config.optimizer.lr
        for job in plan.jobs.values()
        if job.stage == "pretrain"
    }  # type: ignore[attr-defined]
    assert {rates[name, "imagenet1k"] for name in ("m=2", "simclr", "moco", "moco v2")} == {0.03}
    assert (rates["simclr", "imagenet100"], rates["moco v2", "imagenet100"], rates["m=2", "imagenet100"]) == (
        0.06,
        0.06,
        0.03,
    )
    probes = {
        (job.label, job.config.data.name, job.config.data.subset): job.config.lr
        for job in plan.jobs.values()
        if job.stage == "linear"
    }  # type: ignore[attr-defined]
    assert (probes["m=2", "imagenet1k", None], probes["moco v2", "imagenet1k", None]) == (10.0, 30.0)
    others = {
        lr for (name, data, subset), lr in probes.items() if (data != "imagenet1k" or subset) and name[:4] != "moco"
    }
    assert others == {1.0}


def test_a_cell_may_mean_something_else_under_each_protocol() -> None:
    """Figure 7's x: how far a patch reaches (official), the overlap of two (paper); protocols.md D1."""
    for protocol, share in (("official", 1.0), ("paper", 0.5)):
        plan = make_plan(experiments.find(["figure7"]), "paper", protocol)
        found = {}
        for job in plan.jobs.values():
            config: Any = plan.jobs[job.upstream[0]].config if job.upstream else None
            found |= {float(use.cell.removeprefix("x=")): config.method.extend for use in job.uses if config}
        assert found == pytest.approx({x: x * share for x in found})
        assert len(found) == (
            6 if protocol == "official" else 7
        )  # official: at x = 0.6 a patch would reach past the image


def test_only_the_requested_cells_are_planned(tmp_path: Path) -> None:
    plan = make_plan(experiments.find(["table8"]), "smoke", "official", only=["m=3"])
    assert {use.cell for job in plan.jobs.values() for use in job.uses} == {"m=3"} and len(plan.jobs) == 2
    assert set(plan.jobs) < set(planned(scale="smoke").jobs)
    refused(
        tmp_path / "runs",
        ["table8", "--cells", "m=5"],
        "no cell 'm=5'",
        "m=2, m=3, m=3 cell share, m=4",
        "did you mean m=",
    )


def test_a_reference_that_a_scale_lacks_is_neither_planned_nor_known_there(tmp_path: Path) -> None:
    there = {use.cell for job in planned(scale="smoke").jobs.values() for use in job.uses}
    assert there == {"m=2", "m=3", "m=4", "random"}
    assert {"m=3 cell share", "random, BN calibrated"} <= {
        use.cell for job in planned(scale="mini").jobs.values() for use in job.uses
    }
    words = ["table8", "--scale", "smoke", "--cells", "m=3 cell share"]
    refused(tmp_path / "runs", words, "no cell 'm=3 cell share' in table8 at scale smoke", "valid: m=2, m=3, m=4, ran")


def test_no_two_jobs_of_the_paper_have_the_same_name() -> None:
    for scale in ("paper", "mini"):
        names = [job.name for job in make_plan(experiments.find(["all"]), scale, "official").jobs.values()]
        assert len(names) > 80 and len(set(names)) == len(names), sorted(n for n in set(names) if names.count(n) > 1)


def test_a_scale_can_replace_data_set_and_backbone() -> None:
    for job in planned(scale="mini").jobs.values():
        config: Any = job.config
        assert (config.data.name, config.data.canvas, config.backbone) == ("imagenette", 128, "resnet18")
        assert config.data.version == "v2-128px"


def test_protocol_paper_changes_overlap_and_loss_scale_only() -> None:
    official, paper = planned(), planned(protocol="paper")
    for m in (2, 3, 4):
        before, after = (identity(job_of(plan, "pretrain", f"m={m}").config) for plan in (official, paper))
        assert (before["method"].pop("extend"), after["method"].pop("extend")) == (0.3, 0.15)
        assert (before["method"].pop("loss_scale"), after["method"].pop("loss_scale")) == ("official", "paper")
        assert before == after
        assert job_of(official, "linear", f"m={m}").config == job_of(paper, "linear", f"m={m}").config
    assert job_of(official, "linear", "random init").id == job_of(paper, "linear", "random init").id


def test_table8_at_scale_paper_has_the_values_of_protocols_md() -> None:
    """protocols.md §1.7 (optimiser, schedule, batch), §1.2 (montage of 224), §2.1 and §2.2 (the probe)."""
    plan = planned()
    for m in (2, 3, 4):
        config = identity(job_of(plan, "pretrain", f"m={m}").config)
        assert config["optimizer"] == {"lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4}
        assert (config["batch_size"], config["epochs"], config["image_size"]) == (256, 200, 224)
        data = config["data"]["name"]
        assert (config["backbone"], data, config["precision"]) == ("resnet50", "imagenet100", "float32")
        method = {key: config["method"][key] for key in ("m", "extend", "temperature", "dim", "loss_scale")}
        assert method == {"m": m, "extend": 0.3, "temperature": 0.3, "dim": 128, "loss_scale": "official"}
        assert (config["method"]["clustering_weight"], config["method"]["location_weight"]) == (1, 1)
    for label in ("m=2", "m=3", "m=4", "random init"):
        probe = identity(job_of(plan, "linear", label).config)
        assert (probe["lr"], probe["momentum"], probe["weight_decay"], probe["batch_size"]) == (1.0, 0.9, 0.0, 256)
        assert (probe["epochs"], probe["milestones"], probe["gamma"]) == (100, [0.6, 0.8], 0.1)
        assert (probe["image_size"], probe["resize"], probe["crop_scale"], probe["views"]) == (
            224,
            256,
            [0.08, 1.0],
            None,
        )
        assert (probe["backbone"], probe["data"]["name"]) == ("resnet50", "imagenet100")


# -- the command ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("words", [["--list"], ["table8", "--scale", "paper", "--dry-run"]], ids=["list", "dry run"])
def test_list_and_dry_run_import_no_torch_and_write_nothing(words: list[str], tmp_path: Path) -> None:
    store, before = tmp_path / "runs", cpu_seconds()
    done = subprocess.run(
        [sys.executable, "-c", LAZY, *words],
        cwd=tmp_path, env=environment(store), capture_output=True, text=True,
    )  # fmt: skip
    assert cpu_seconds() - before < 1
    assert done.stdout.splitlines()[-1] == "exit 0 []", done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_the_graph_and_the_cost(tmp_path: Path) -> None:
    done = run(tmp_path / "runs", ["table8", "--scale", "mini", "--cluster", "local", "--dry-run"])
    plan = planned(scale="mini")
    assert all(f"{job.id}  new" in done.stdout and job.name in done.stdout for job in plan.jobs.values())
    assert "12 jobs, 0 done, 12 to run on local (" in done.stdout
    assert "\nestimated, start-up included: " in done.stdout and " CPU-h, all of it to run\n" in done.stdout
    assert "\nwall time: about " in done.stdout and "12 jobs estimated from the stated rate" in done.stdout
