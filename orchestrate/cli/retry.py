"""`retry`: submit again the jobs that failed, were cancelled, interrupted or lost, and their dependents."""

from __future__ import annotations

from pathlib import Path

from jigclu.config import ConfigError
from orchestrate import clusters
from orchestrate.cli.select import all_folders, select, with_downstream
from orchestrate.console import print_line
from orchestrate.jobs.planned import plan_from_folders
from orchestrate.jobs.states import SUBMITTABLE, look, record_ends
from orchestrate.jobs.submissions import submission


def retry(store: Path, words: list[str], cluster: str | None, jobs: int) -> int:
    """Submit again the jobs that failed, were cancelled, lost or interrupted, and their dependents.

    They go to `cluster`, or to the cluster that they were sent to before.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, not {jobs}")
    if cluster is not None:
        clusters.load(cluster)  # a mistyped name is an error even if there is nothing to retry
    everything = all_folders(store)
    states = look(everything)
    record_ends(everything, states)
    idle = {folder.id: folder for folder in everything if states[folder.id].name in SUBMITTABLE}
    ended = [folder.id for folder in select(store, words) if folder.id in idle and states[folder.id].name != "new"]
    chosen = with_downstream(idle, ended)
    # And their upstream jobs, whether done, active or to be submitted as well.
    by_id = {folder.id: folder for folder in everything}
    upstream = {job_id for folder in chosen.values() for job_id in folder.job.get("upstream", [])}
    chosen |= {job_id: by_id[job_id] for job_id in sorted(upstream & by_id.keys())}
    if not chosen:
        print_line("nothing to retry: none of these jobs failed, was cancelled, interrupted or lost")
        return 0
    plan = plan_from_folders(chosen.values())
    sites = sorted(
        {str(submission(folder).get("site", "")) for job_id, folder in chosen.items() if job_id in idle} - {""}
    )
    if cluster is None and len(sites) > 1:
        raise ConfigError(f"these jobs were sent to {' and '.join(sites)}; choose one with --cluster")
    target = clusters.load(cluster or (sites[0] if sites else None))
    clusters.require_sbatch(target)
    from orchestrate.preflight import preflight, without_detectron2

    without_detectron2(plan, {job_id: "new" if job_id in idle else "done" for job_id in plan.jobs})
    placements = clusters.place_jobs(plan.jobs.values(), store, target)
    preflight([placement for job_id, placement in placements.items() if job_id in idle], store, target)
    if target.kind == "slurm":
        from orchestrate.slurm import submit

        submit.submit(plan, store, target, placements)
        return 0
    from orchestrate.local import LocalScheduler

    return LocalScheduler(plan, store, jobs).run()
