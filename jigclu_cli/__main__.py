"""`jigclu COMMAND ...`: every command of the suite under one name."""

from __future__ import annotations

import importlib
import sys

from jigclu_cli.guard import guard_imports

if __name__ == "__main__":
    guard_imports("jigclu")

from jigclu_cli.arguments import announce, did_you_mean, mistake, version
from jigclu_cli.output import steady

# command -> (module with main(words, prog), whether the command is a verb of that module's own parser)
COMMANDS = {
    "run": ("orchestrate.run", False),
    **dict.fromkeys(("status", "why", "logs", "cancel", "retry", "sync", "clean"), ("orchestrate.__main__", True)),
    "report": ("reports.__main__", False),
    "data": ("jigclu.data.__main__", False),
    "export": ("orchestrate.cli.export", False),
    "mlflow": ("orchestrate.cli.dashboards", False),
}
# What is said before the imports of commands that answer late anyway.
SLOW = {"run": "planning ...", "retry": "looking at the jobs ...", "report": "reading the results ..."}
HELP = """usage: jigclu COMMAND ...

Reproduce the JigClu paper (CVPR 2021). `jigclu COMMAND --help` explains a command.

start jobs
  run       run experiments: jigclu run table8 --scale smoke
  retry     resubmit jobs that failed, were cancelled, interrupted or lost
  cancel    end waiting and running jobs
look at jobs
  status    the state of every job
  why       everything about one job: state, code, data, cost, command
  logs      a job's log
results
  report    tables, figures and one page: jigclu report --scale smoke
  mlflow    serve the MLflow dashboards
  export    copy a pretraining's encoder weights to a file
data and store
  data      check, download and pack data sets: jigclu data check all
  sync      update MLflow from the job folders
  clean     list the files that nothing references; --yes removes them

  -h, --help   this text
  --version    print the version and exit
environment: JIGCLU_STORE (job folders, default runs/), JIGCLU_DATA (data sets, default data/), MLFLOW_TRACKING_URI"""


@steady
def main(words: list[str] | None = None) -> int:
    """Runs the command; its exit code, or 2 for an unknown command."""
    guard_imports("jigclu")
    words = sys.argv[1:] if words is None else words
    if not words or words[0] in ("-h", "--help"):
        print(HELP)
        return 0 if words else 2
    if words[0] == "--version":
        print(version())
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        hint = did_you_mean(name, [*COMMANDS, "--help", "--version"])
        return mistake("jigclu", f"unknown command {name or repr(name)}{hint}; valid: {', '.join(COMMANDS)}")
    guard_imports(f"jigclu {name}")
    module, is_verb = COMMANDS[name]
    if name in SLOW and not {"-h", "--help", "--version", "--list"}.intersection(rest):
        announce(SLOW[name])
    entry = importlib.import_module(module)
    status: int = entry.main([name, *rest], "jigclu") if is_verb else entry.main(rest, f"jigclu {name}")
    return status


if __name__ == "__main__":
    sys.exit(main())
