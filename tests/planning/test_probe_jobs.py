"""At the small scales an encoder has one probe per data set, whatever rate a recipe or a method names."""

from __future__ import annotations

from collections import defaultdict

import pytest

from jigclu.config import LinearConfig
from orchestrate.planning import experiments
from orchestrate.planning.plan import Job, make_plan

ALL = list(experiments.load_all().values())


def probes(scale: str) -> list[Job]:
    return [job for job in make_plan(ALL, scale, "official").jobs.values() if job.stage == "linear"]


@pytest.mark.parametrize("scale", ["small", "mini", "smoke"])
def test_an_encoder_has_one_probe_in_all_tables(scale: str) -> None:
    by_encoder = defaultdict(list)
    for job in probes(scale):
        assert isinstance(job.config, LinearConfig) and job.config.standardize and job.config.selection == "held_out"
        features = job.upstream, job.config.calibrate_bn, job.config.data.model_dump_json()
        by_encoder[features].append(job)
    assert [[job.name for job in jobs] for jobs in by_encoder.values() if len(jobs) > 1] == []
    after = max(by_encoder.values(), key=lambda jobs: len(jobs[0].experiments))[0]  # JigClu's, of the plain recipe
    assert {"table1", "table2", "table7", "table8", "table9", "figure7"} <= after.experiments


def test_the_printed_recipe_names_its_rates() -> None:
    """At scale paper a job's id holds neither the choice nor the standardisation: the released probe has neither."""
    rates = set()
    for job in probes("paper"):
        assert isinstance(job.config, LinearConfig)
        assert not job.config.standardize and job.config.selection == "given"
        rates.add(job.config.lr)
    assert len(rates) > 1
