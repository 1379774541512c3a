"""The figure of accuracy against the cost of pretraining, and the cost columns of the tables."""

from __future__ import annotations

import pytest
from helpers.claims import MINI, result, table

from orchestrate.planning import experiments
from orchestrate.planning.plan import make_plan
from reports.figures.compute import COSTS, equal_compute
from reports.records import Job, Result, Table


def trained(key: str, value: float, method: str, forwards: float, hours: float | None = 1.0) -> Result:
    metrics = {"result.forwards": forwards, "result.gmac": forwards * 0.15, "result.images_seen": 1e6}
    metrics |= {"result.hours": hours} if hours else {}
    encoder = Job(
        job=f"{key} encoder", name="", stage="pretrain", state="done", params={"method.name": method}, metrics=metrics
    )
    made = result(key, value)
    return Result(**{**vars(made), "chains": tuple((encoder, job) for job in made.jobs)})


def shown(*results: Result) -> Table:
    return table(*results, **MINI)


def test_methods_stand_side_by_side_at_their_own_cost() -> None:
    cells = trained("JigClu", 60.0, "jigclu", 3.0), trained("MoCo v2", 55.0, "moco", 4.0)
    drawn = (equal_compute(shown(*cells)) or b"").decode()
    assert "<svg" in drawn and "JigClu" in drawn and "MoCo v2" in drawn
    encoders = [cell.chains[0][0] for cell in cells]
    assert [cost(job) for cost in COSTS.values() for job in encoders] == pytest.approx([3.0, 4.0, 0.45, 0.6, 1.0, 1.0])


def test_one_method_alone_has_nothing_to_be_compared_with() -> None:
    one = trained("a", 60.0, "jigclu", 3.0)
    assert equal_compute(shown(one, trained("b", 55.0, "jigclu", 3.0))) is None
    assert equal_compute(shown(one, trained("b", 55.0, "supervised", 3.0))) is None
    assert equal_compute(shown(one, result("b", 50.0))) is None


def test_jobs_of_an_older_version_did_not_count_and_are_left_out() -> None:
    older = Result(**{**vars(trained("b", 55.0, "moco", 4.0)), "chains": trained("b", 55.0, "moco", 0.0).chains})
    assert equal_compute(shown(trained("a", 60.0, "jigclu", 3.0), older)) is None


def test_cost_columns_need_no_training_of_their_own() -> None:
    for name in ("table1", "table2"):
        (experiment,) = experiments.find([name])
        costs = [cell for cell in experiment.references if cell.stage == "pretrain"]
        assert {cell.method for cell in costs} >= {"jigclu", "moco_v2", "simclr"} and None not in {
            c.method for c in costs
        }
        with_costs = make_plan([experiment], "mini", "official").jobs
        without = make_plan(
            [experiment], "mini", "official", only=[c.key for c in experiment.all_cells if c not in costs]
        ).jobs
        assert with_costs.keys() == without.keys()
