"""The sbatch script of one job or of an array of similar jobs, written by submitit, and the call of sbatch.

A job's pickle is in its own folder before sbatch is called. submitit moves its pickles only after sbatch has returned; an
orchestrator that is killed in between leaves a job that cannot start. The script links the pickle to the name under which
submitit looks for it.
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
from orchestrate import submitit_bridge
from orchestrate.clusters import Cluster, Request
from orchestrate.jobs.snapshot import job_environment
from orchestrate.jobs.submissions import LIST, SCRIPT
from orchestrate.jobs.surroundings import without_launchers, without_ranks
from orchestrate.worker import run_job

# A stop signal that arrives before Python handles it must not end the job: SLURM requeues a preempted job only if it
# still runs.
IGNORE_EARLY_SIGNALS = """sh -c 'trap "" USR2 TERM; exec "$@"' sh """
PICKLE = "job.pkl"


def sbatch_options(cluster: Cluster, request: Request, folder: Path, count: int, after: list[str]) -> dict[str, Any]:
    """sbatch's options by their long names.

    The cluster file's own `options` win; false there drops an option of the suite.
    """
    gpus = (request.tasks_per_node or 1) * request.gpus_per_task
    gpu_text = ":".join(filter(None, ("gpu" if request.gpu_option == "gres" else None, request.gpu_type, str(gpus))))
    options: dict[str, Any] = {
        request.gpu_option.replace("-", "_"): gpu_text if gpus else None,
        "partition": request.partition,
        "account": request.account,
        "qos": request.qos,
        "constraint": request.constraint,
        "cpus_per_task": request.cpus_per_task,
        "mem": f"{round(request.mem_gb * 1024)}M" if request.mem_gb else None,
        "requeue" if cluster.max_requeues else "no_requeue": True,  # a site may have JobRequeue=0, or 1
        "output": str(folder).replace("%", "%%") + ("/%A_%a.log" if count > 1 else "/%j.log"),
        "array": _array_range(count, cluster.max_jobs) if count > 1 else None,
        **{key.replace("-", "_"): value for key, value in cluster.options.items()},
    }
    if after:
        options |= {"dependency": ",".join(after), "kill_on_invalid_dep": "yes"}
    return {key: value for key, value in options.items() if value is not None and value is not False}


def _array_range(count: int, at_once: int | None) -> str:
    return f"0-{count - 1}" + (f"%{at_once}" if at_once and at_once < count else "")


def write_script(
    cluster: Cluster, request: Request, folder: Path, name: str, tree: Path, jobs: list[Path], after: list[str]
) -> Path:
    """<folder>/submission.sh for these job folders, one task per GPU. It starts once `after` is met."""
    options = sbatch_options(cluster, request, folder, len(jobs), after)
    # Since SLURM 22.05 srun no longer takes --cpus-per-task from sbatch. If one rank dies, the others must not wait for
    # it.
    step = ["srun", "--unbuffered", "--export=ALL", "--kill-on-bad-exit=1"]
    if "cpus_per_task" in options:
        step.append(f"--cpus-per-task={options['cpus_per_task']}")
    exports = [f"export {key}={shlex.quote(value)}" for key, value in job_environment(tree).items()]
    # First, because the site's own setup lines may change it.
    data = f"export JIGCLU_DATA={shlex.quote(str(data_root().absolute()))}"
    parameters = {
        "job_name": name, "time": request.minutes,
        "nodes": request.nodes or 1, "ntasks_per_node": request.tasks_per_node or 1,
        "wckey": None,  # submitit's default, wckey "submitit", is rejected by sites that track wckeys
        "stderr_to_stdout": True,
        "use_srun": False,  # the command has its own srun, whose log goes to the job's folder
        "setup": [data, *cluster.setup, *exports, *_job_variables(folder / LIST)],
        "additional_parameters": options,
    }  # fmt: skip
    python = IGNORE_EARLY_SIGNALS + shlex.quote(sys.executable)
    run = submitit_bridge.run_command(python, '"$logs"')
    command = f'{shlex.join(step)} --output "${{logs//%/%%}}/${{id}}_%t_log.out" {run}'
    text = submitit_bridge.script_text(folder, command, parameters)
    folder.mkdir(parents=True, mode=0o700)
    (folder / LIST).write_text("".join(f"{path}\n" for path in jobs), encoding="utf-8")
    (folder / SCRIPT).write_text(text, encoding="utf-8")
    return folder / SCRIPT


def _job_variables(listing: Path) -> list[str]:
    """Shell lines that find this task's job folder in the list and link its pickle to submitit's name for it."""
    return [
        f'logs=$(sed -n "$((${{SLURM_ARRAY_TASK_ID:-0}} + 1))p" {shlex.quote(str(listing))})/logs',
        "id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; id=${id:-$SLURM_JOB_ID}",
        f'ln -sf {PICKLE} "$logs/${{id}}_submitted.pkl"',
    ]


def write_pickle(job: Path, minutes: int) -> None:
    """Write what submitit runs to the job's own folder.

    It never changes, so it serves every attempt and every submission.
    """
    temporary = job / "logs" / f".{PICKLE}.{os.getpid()}"
    submitit_bridge.write_pickle(temporary, minutes, run_job, str(job))
    os.replace(temporary, job / "logs" / PICKLE)


class SubmissionRejected(Exception):
    """sbatch rejected a submission; the message is sbatch's own, in one line."""


def sbatch(script: Path, *more: str) -> str:
    """The SLURM id that sbatch returns. Raises SubmissionRejected.

    sbatch inherits the lock of submission, so that the lock outlives an orchestrator that is killed: the next one to
    hold the lock finds either no sbatch running or its job in the queue.
    """
    try:
        command, env = ["sbatch", "--parsable", *more, str(script)], _environment(script.read_text(encoding="utf-8"))
        process = subprocess.run(command, capture_output=True, text=True, errors="replace", env=env, close_fds=False)
    except OSError as error:
        raise SubmissionRejected(str(error)) from None
    if process.returncode:
        lines = (re.sub(r"^(sbatch: )?(error: )?", "", line.strip()) for line in process.stderr.splitlines())
        raise SubmissionRejected("; ".join(line for line in lines if line) or f"sbatch ended with {process.returncode}")
    if more:
        return ""
    last = process.stdout.strip().rpartition("\n")[2].partition(";")[0]  # a site's wrapper may print something first
    if not last.isdigit():
        raise SubmissionRejected(f"sbatch gave no job id but {process.stdout.strip()[-200:]!r}")
    return last


def _environment(script: str) -> dict[str, str]:
    """This process's environment, which sbatch passes to the job, without what would override the script or the ranks.

    Dropped: sbatch's presets for options that the script sets, variables that say which rank a process is, and,
    inside a SLURM job, the variables of that job.
    """
    inside_job, kept = "SLURM_JOB_ID" in os.environ, {"SLURM_CONF"}
    unset = (name for name in ("partition", "account", "qos", "constraint") if f"#SBATCH --{name}=" not in script)
    kept |= {f"SBATCH_{name.upper()}" for name in unset}
    variables = without_launchers(os.environ) if inside_job else without_ranks(os.environ)
    return {key: value for key, value in variables.items() if key in kept or not key.startswith("SBATCH_")}
