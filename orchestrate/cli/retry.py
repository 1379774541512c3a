"""`retry`: submit again the jobs that failed, were cancelled or lost, and their dependents."""

from __future__ import annotations

from pathlib import Path

from jigclu.config import ConfigError
from orchestrate import clusters
from orchestrate.cli.select import all_folders, select, with_downstream
from orchestrate.console import print_line
from orchestrate.jobs.planned import plan_of
from orchestrate.jobs.states import GOES_ON, look, write_down
from orchestrate.jobs.submissions import submission


def retry(store: Path, words: list[str], cluster: str | None, jobs: int) -> int:
    """Send again what failed, was cancelled, lost or interrupted, and what hangs on it: to `cluster`, or where it was."""
    everything = all_folders(store)
    states = look(everything)
    write_down(everything, states)
    idle = {folder.id: folder for folder in everything if states[folder.id].name in GOES_ON}
    ended = [folder.id for folder in select(store, words) if folder.id in idle and states[folder.id].name != "new"]
    chosen = with_downstream(idle, ended)
    # And what they build on, be it done, waiting or to be sent as well.
    by_id = {folder.id: folder for folder in everything}
    chosen |= {
        up: by_id[up] for folder in list(chosen.values()) for up in folder.job.get("upstream", []) if up in by_id
    }
    if not chosen:
        print_line("nothing to retry: no job of these failed, was cancelled, interrupted or lost")
        return 0
    plan = plan_of(chosen.values())
    sites = sorted({str(submission(folder).get("site", "")) for one, folder in chosen.items() if one in idle} - {""})
    if cluster is None and len(sites) > 1:
        raise ConfigError(f"these jobs were sent to {' and '.join(sites)}; say which with --cluster")
    where = clusters.load(cluster or (sites[0] if sites else None))
    clusters.require_sbatch(where)
    placements = clusters.place_jobs(plan.jobs.values(), store, where)
    from orchestrate.preflight import preflight

    preflight([placement for job_id, placement in placements.items() if job_id in idle], store, where)
    if where.kind == "slurm":
        from orchestrate.slurm import submit

        submit.submit(plan, store, where, placements)
        return 0
    from orchestrate.local import LocalScheduler

    return LocalScheduler(plan, store, jobs).run()
