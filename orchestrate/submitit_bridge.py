"""The only module that uses private parts of submitit. Written for submitit 1.5.3 and 1.5.4.

| private name                               | what it is used for                                                     |
|--------------------------------------------|-------------------------------------------------------------------------|
| `SlurmExecutor._make_submission_file_text` | the sbatch script, with the suite's own srun line (logs per job folder) |
| `core.utils.DelayedSubmission`             | the pickle that a SLURM task loads: it must exist before sbatch runs    |
| `python -m submitit.core._submit FOLDER`   | the command that loads and runs that pickle                             |
| `LocalJob._process`                        | a local job's controller: to signal it, and to wait until it has ended  |

Each function checks the names that it needs and raises ConfigError in one line if submitit has changed them.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jigclu.config import ConfigError

SUPPORTED = ">=1.5.3,<1.6"
RUN_MODULE = "submitit.core._submit"


def _check(what: str, found: Any, *parameters: str) -> None:
    """ConfigError unless `found` exists and (if it is a function) takes exactly these parameters."""
    problem = ""
    if found is None:
        problem = f"has no {what}"
    elif parameters and (actual := tuple(inspect.signature(found).parameters)) != parameters:
        problem = f"has {what}({', '.join(actual)}), not {what}({', '.join(parameters)})"
    if problem:
        import submitit

        raise ConfigError(
            f"submitit {submitit.__version__} {problem}, which the suite needs; install submitit{SUPPORTED}"
        )


def run_command(python: str, folder: str) -> str:
    """The shell command that runs the pickle of one SLURM task; `python` and `folder` are shell text."""
    _check(RUN_MODULE, importlib.util.find_spec(RUN_MODULE))
    return f"{python} -u -m {RUN_MODULE} {folder}"


def script_text(folder: Path, command: str, parameters: dict[str, Any]) -> str:
    """The text of an sbatch script that runs `command`. `parameters`: those of submitit.SlurmExecutor."""
    import submitit

    name = "_make_submission_file_text"
    _check(f"SlurmExecutor.{name}", getattr(submitit.SlurmExecutor, name, None), "self", "command", "uid")
    executor = submitit.SlurmExecutor(folder=folder)
    executor.update_parameters(**parameters)
    return str(executor._make_submission_file_text(command, ""))


def write_pickle(path: Path, minutes: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Write what `run_command` runs: function(*arguments), within `minutes`, never requeued by submitit itself."""
    from submitit.core import utils

    delayed_class = getattr(utils, "DelayedSubmission", None)
    _check("core.utils.DelayedSubmission", delayed_class, "function", "args", "kwargs")
    for method, *parameters in (("set_timeout", "timeout_min", "max_num_timeout"), ("dump", "filepath")):
        _check(f"DelayedSubmission.{method}", getattr(delayed_class, method, None), "self", *parameters)
    delayed = utils.DelayedSubmission(function, *arguments)
    delayed.set_timeout(minutes, 0)
    delayed.dump(path)


def check_local() -> None:
    """ConfigError if `controller` would not work: before a job starts that could not be stopped."""
    from submitit.local.local import LocalJob

    _check("LocalJob._process", "_process" in LocalJob.__init__.__code__.co_names or None)


def controller(handle: Any) -> Any:
    """The process (subprocess.Popen) that submitit started to run and watch a local job."""
    process = getattr(handle, "_process", None)
    _check("LocalJob._process", process)
    return process
