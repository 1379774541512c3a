"""What sbatch is told: one script for a job or for an array of jobs alike, written by submitit. And submitit's local executor.

A job's pickle lies in its own folder before sbatch is called (submitit would move it there afterwards: an orchestrator killed in
between would leave a job that cannot start), and the script links it to the name that submitit looks for.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from jigclu.data.catalog import data_root
from orchestrate.clusters import Cluster, Request
from orchestrate.jobs.snapshot import job_environment
from orchestrate.worker import run_job

# A warning that comes before Python can heed it must not end the job: SLURM requeues what it preempts only if it still runs.
PATIENT = """sh -c 'trap "" USR2 TERM; exec "$@"' sh """
PICKLE, SCRIPT, LIST = "job.pkl", "submission.sh", "jobs.txt"


def flags(cluster: Cluster, request: Request, folder: Path, count: int, after: list[str]) -> dict[str, Any]:
    """sbatch's options by their long names: the cluster's own `options` win, `false` there leaves one of ours out."""
    gpus = (request.tasks_per_node or 1) * request.gpus_per_task
    asked = ":".join(filter(None, ("gpu" if request.gpu_option == "gres" else None, request.gpu_type, str(gpus))))
    told: dict[str, Any] = {
        request.gpu_option.replace("-", "_"): asked if gpus else None,
        "partition": request.partition,
        "account": request.account,
        "qos": request.qos,
        "constraint": request.constraint,
        "cpus_per_task": request.cpus_per_task,
        "mem": f"{round(request.mem_gb * 1024)}M" if request.mem_gb else None,
        "requeue" if cluster.max_requeues else "no_requeue": True,  # a site may have JobRequeue=0, or 1
        "output": str(folder / ("%A_%a.log" if count > 1 else "%j.log")),
        "array": _range(count, cluster.max_jobs) if count > 1 else None,
        **{key.replace("-", "_"): value for key, value in cluster.options.items()},
    }
    if after:
        told |= {"dependency": ",".join(after), "kill_on_invalid_dep": "yes"}
    return {key: value for key, value in told.items() if value is not None and value is not False}


def _range(count: int, at_once: int | None) -> str:
    return f"0-{count - 1}" + (f"%{at_once}" if at_once and at_once < count else "")


def write_script(
    cluster: Cluster, request: Request, folder: Path, name: str, tree: Path, jobs: list[Path], after: list[str]
) -> Path:
    """<folder>/submission.sh for these job folders, one task a GPU; it starts when the dependencies `after` are met."""
    import submitit

    executor = submitit.SlurmExecutor(folder=folder, python=PATIENT + shlex.quote(sys.executable))
    told = flags(cluster, request, folder, len(jobs), after)
    # srun takes no --cpus-per-task from sbatch since SLURM 22.05; a rank that dies must not leave the others waiting for it.
    step = ["srun", "--unbuffered", "--export=ALL", "--kill-on-bad-exit=1"]
    if "cpus_per_task" in told:
        step.append(f"--cpus-per-task={told['cpus_per_task']}")
    exports = [f"export {key}={shlex.quote(value)}" for key, value in job_environment(tree).items()]
    data = f"export JIGCLU_DATA={shlex.quote(str(data_root().absolute()))}"  # first: a site's own lines may move it
    executor.update_parameters(
        job_name=name, time=request.minutes, nodes=request.nodes or 1, ntasks_per_node=request.tasks_per_node or 1,
        wckey=None,  # submitit's own default, wckey "submitit", is refused where wckeys are tracked
        stderr_to_stdout=True, use_srun=False,  # the step is ours: its log lies in the job's folder
        setup=[data, *cluster.setup, *exports, *_which_job(folder / LIST)], additional_parameters=told,
    )  # fmt: skip
    command = (
        f'{shlex.join(step)} --output "$logs/${{id}}_%t_log.out" {executor.python} -u -m submitit.core._submit "$logs"'
    )
    folder.mkdir(parents=True, mode=0o700)
    (folder / LIST).write_text("".join(f"{path}\n" for path in jobs))
    (folder / SCRIPT).write_text(executor._make_submission_file_text(command, ""))
    return folder / SCRIPT


def _which_job(listing: Path) -> list[str]:
    """Of the listed job folders this task's: its logs, and its pickle under the name that submitit looks for."""
    return [
        f'logs=$(sed -n "$((${{SLURM_ARRAY_TASK_ID:-0}} + 1))p" {shlex.quote(str(listing))})/logs',
        "id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; id=${id:-$SLURM_JOB_ID}",
        f'ln -sf {PICKLE} "$logs/${{id}}_submitted.pkl"',
    ]


def write_pickle(job: Path, minutes: int) -> None:
    """What submitit runs, in the job's own folder: always the same, so it serves every attempt and every submission."""
    from submitit.core.utils import DelayedSubmission

    delayed = DelayedSubmission(run_job, str(job))
    delayed.set_timeout(minutes, 0)
    aside = job / "logs" / f".{PICKLE}.{os.getpid()}"
    delayed.dump(aside)
    os.replace(aside, job / "logs" / PICKLE)


class SubmissionRejected(Exception):
    """sbatch said no; its own words in one line."""


def sbatch(script: Path, *more: str) -> str:
    """The SLURM id that sbatch gives. Raises Refused.

    Our lock, inherited, lives as long as sbatch: whoever has it next finds either no sbatch at work or its job in the queue.
    """
    try:
        command, env = ["sbatch", "--parsable", *more, str(script)], _environment(script.read_text())
        done = subprocess.run(command, capture_output=True, text=True, env=env, close_fds=False)
    except OSError as error:
        raise SubmissionRejected(str(error)) from None
    if done.returncode:
        lines = (re.sub(r"^(sbatch: )?(error: )?", "", line.strip()) for line in done.stderr.splitlines())
        raise SubmissionRejected("; ".join(line for line in lines if line) or f"sbatch ended with {done.returncode}")
    if more:
        return ""
    last = done.stdout.strip().rpartition("\n")[2].partition(";")[0]  # a site's own wrapper may say something first
    if not last.isdigit():
        raise SubmissionRejected(f"sbatch gave no job id but {done.stdout.strip()[-200:]!r}")
    return last


def _environment(script: str) -> dict[str, str]:
    """Ours, less what would overrule the script: sbatch's presets for what it says itself, and the job's that we run in, if any."""
    inside, kept = "SLURM_JOB_ID" in os.environ, {"SLURM_CONF"}
    unsaid = (name for name in ("partition", "account", "qos", "constraint") if f"#SBATCH --{name}=" not in script)
    kept |= {f"SBATCH_{name.upper()}" for name in unsaid}
    dropped = ("SBATCH_", "SLURM_", "SRUN_", "SUBMITIT_") if inside else ("SBATCH_",)
    return {key: value for key, value in os.environ.items() if key in kept or not key.startswith(dropped)}
