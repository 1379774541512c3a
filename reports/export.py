"""Tables as CSV rows and as the JSON of results.json."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from reports import verdicts
from reports.frames import finite
from reports.records import Job, Result, Table, unique_jobs


def command(table: Table, result: Result) -> str:
    """The command that recomputes the cell; "" if no job fills it."""
    return table.command_of(result) if result.cell.runs else ""


def record(table: Table, result: Result) -> dict[str, Any]:
    """Everything about a cell as plain JSON values: an entry of results.json.

    `hardware`, `versions`, `seconds` (spent by all the jobs behind the cell) and `date` are the number's provenance.
    """
    chain = {job.job: job for jobs in result.chains for job in jobs}.values()
    finished = [job.finished for job in chain if job.finished]
    return {
        "experiment": table.experiment.name,
        "cell": result.cell.key,
        "row": result.cell.row,
        "column": result.cell.column,
        "reference": result.reference,
        "printed": result.cell.printed,
        "read": result.cell.read,
        "value": result.value,
        "std": result.std,
        "n": result.n,
        "difference": result.difference,
        "over_random": table.gain(result),
        "chance": table.chance(result),
        "loss_at_chance": result.at_chance,
        "half_width_95": result.half_width,
        "noise_95": result.noise,
        "noise_basis": result.noise_basis,
        "unit": table.unit(result.cell),
        "cited": result.cell.cited or "",
        "not_applicable": result.cell.not_applicable or "",
        "scale": table.scale,
        "protocol": table.protocol,
        "variant": table.variant,
        "comparable": table.comparable,
        "state": result.state,
        "stale": result.stale,
        "why_stale": result.why_stale,
        "other_recipe": result.other_recipe,
        "mixed_data": any(len(fingerprints) > 1 for fingerprints in result.data.values()),
        "message": result.message,
        "verdict": result.verdict,
        "measured": result.measured,
        "values": list(result.values),
        "seeds": list(result.seeds),
        "jobs": [job.job for job in result.jobs],
        "runs": [job.run_id for job in result.jobs],
        "commit": ",".join(result.commits),
        "command": command(table, result),
        "hardware": "; ".join(sorted({job.device for job in chain if job.device})),
        "versions": "; ".join(sorted({job.versions for job in chain if job.versions})),
        "seconds": round(sum(job.wall_seconds or 0 for job in chain)),
        "date": f"{datetime.fromtimestamp(max(finished), UTC):%Y-%m-%d}" if finished else "",
    }


def csv(table: Table) -> str:
    """One line per cell; lists are words between spaces."""
    lines = [record(table, result) for result in table.results]
    for line in lines:
        for name in ("values", "seeds", "jobs", "runs"):
            line[name] = " ".join("NaN" if value is None else str(value) for value in line[name])
    return str(pd.DataFrame(lines).to_csv(index=False, lineterminator="\n"))


def claim_record(table: Table, checked: verdicts.CheckedClaim) -> dict[str, str]:
    """A claim's entry of results.json."""
    return {
        "experiment": table.experiment.name,
        "scale": table.scale,
        "protocol": table.protocol,
        "variant": table.variant,
        "text": checked.claim.text,
        "source": checked.claim.source,
        "outcome": checked.outcome,
        "reason": checked.reason,
    }


def by_rate(job: Job, metric: str = "top1") -> dict[str, float]:
    """A probe's `metric` (percent) for each learning rate of its sweep, smallest rate first: {"0.1": 66.4}.

    top1: what would be reported at that rate; held_out_top1: on the part of train by which the rate was chosen, if it was.
    """
    prefix = f"result.{metric}.lr"
    rates = {name.removeprefix(prefix): value for name, value in job.metrics.items() if name.startswith(prefix)}
    return dict(sorted(rates.items(), key=lambda item: float(item[0])))


def reported_rate(job: Job) -> float:
    """The learning rate of the classifier that a probe reports: the chosen one, else the config's; NaN if neither is known."""
    return float(job.metrics.get("result.lr", job.params.get("lr", "nan")))


def rates_csv(table: Table) -> str:
    """One line per cell, seed and learning rate of the probes' sweeps; "" if the table has none."""
    lines = [
        {
            "cell": result.cell.key,
            "job": job.job,
            "seed": job.seed,
            "lr": rate,
            "reported": reported_rate(job) == float(rate),
            "top1": value,
            "held_out_top1": by_rate(job, "held_out_top1").get(rate),
        }
        for result in table.results
        for job in result.jobs
        for rate, value in by_rate(job).items()
    ]
    return str(pd.DataFrame(lines).to_csv(index=False, lineterminator="\n")) if lines else ""


def job_record(job: Job) -> dict[str, Any]:
    """What is needed to reproduce the job's numbers, as plain JSON values."""
    metrics = {name: finite(value) for name, value in sorted(job.metrics.items()) if name.startswith("result.")}
    return {
        "job": job.job,
        "name": job.name,
        "stage": job.stage,
        "state": job.state,
        "stale": job.stale,
        "attempt": job.attempt,
        "message": job.message,
        "seed": job.seed,
        "upstream": list(job.upstream),
        "command": job.command,
        "commit": job.commit,
        "source_digest": job.source,
        "data_fingerprint": job.fingerprint,
        "slurm_job_id": job.slurm_id,
        "mlflow_run": job.run_id,
        "log": job.log,
        "device": job.device,
        "ranks": job.ranks,
        "versions": job.versions,
        "seconds": job.seconds,
        "estimated_hours": job.estimated_hours,
        "spent_hours": job.hours,
        "metrics": metrics,
        "config": job.params,
    }


def results_json(tables: list[Table], run: dict[str, Any]) -> str:
    """`run`: a summary; `claims`, `cells` and `jobs`: those of all tables."""
    claims = [claim_record(table, checked) for table in tables for checked in verdicts.check_claims(table)]
    cells = [record(table, result) for table in tables for result in table.results]
    jobs = [job_record(job) for job in unique_jobs(tables)]
    content = {"run": run, "claims": claims, "cells": cells, "jobs": jobs}
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
