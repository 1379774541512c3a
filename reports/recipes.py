"""Whether a cell's jobs are those that the experiment files would plan now: an edited recipe makes other jobs."""

from __future__ import annotations

from jigclu.config import ConfigError
from orchestrate.planning.experiments import Experiment
from orchestrate.planning.plan import make_plan
from orchestrate.planning.resolve import parse_sets
from reports.records import Table


def of_another_recipe(table: Table, experiment: Experiment) -> set[str]:
    """Keys of the cells with a value from a job that is not in the plan any more.

    Empty also if the table cannot be planned: its variant sets something that no longer exists.
    """
    filled = [result for result in table.results if result.value is not None]
    if not filled:
        return set()
    seeds = [int(job.seed) for result in filled for job in result.jobs if job.seed.isdigit()] or [0]
    first, count = min(seeds), 1 + max(seeds) - min(seeds)
    try:
        settings = parse_sets(table.settings)
        plan = make_plan([experiment], table.scale, table.protocol, count, settings, first_seed=first)
    except (ConfigError, OSError):
        return set()
    planned = {(use.cell, job.id) for job in plan.jobs.values() for use in job.uses}
    return {
        result.cell.key for result in filled if any((result.cell.key, job.job) not in planned for job in result.jobs)
    }
