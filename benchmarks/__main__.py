"""`python -m benchmarks [GROUP ...]`: measures this machine and prints ratios beside their targets and the committed values.

  python -m benchmarks                      # everything (some minutes on a CPU)
  python -m benchmarks step augmentation    # some groups
  python -m benchmarks --save               # also write benchmarks/results/<device>.json; other groups in it are kept
  python -m benchmarks profile              # the slowest operations of the full step

The exit status is 0 whether or not the targets are met.
"""

from __future__ import annotations

from jigclu_cli.guard import guard_imports

if __name__ == "__main__":
    guard_imports("benchmarks")

from collections.abc import Callable, Sequence

from benchmarks import ablations, augmentation, exchange, formats, loading, orchestration, probe, profile, results, step
from benchmarks.timing import Group, about
from benchmarks.workload import Workload, default_workload
from jigclu.config.base import nearest
from jigclu.training.session import device_name
from jigclu_cli.arguments import Parser, mistake, whole

Measure = Callable[[Workload, int], Group]
GROUPS: dict[str, Measure] = {
    "step": step.measure,
    "loading": loading.measure,
    "augmentation": augmentation.measure,
    "formats": formats.measure,
    "probe": probe.measure,
    "exchange": exchange.measure,
    "ablations": ablations.measure,
    "orchestration": lambda workload, rounds: orchestration.measure(rounds, full=True),
}


def main(arguments: Sequence[str] | None = None) -> int:
    command = Parser(prog="python -m benchmarks", description=__doc__)
    command.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join(GROUPS)}, profile")
    command.add_argument(
        "--rounds",
        type=whole(3, 1000),
        default=9,
        metavar="N",
        help="timings per row (default 9)",
    )
    command.add_argument("--save", action="store_true", help="write benchmarks/results/<device>.json")
    given = command.parse_args(arguments)
    for name in given.groups:
        if name not in (*GROUPS, "profile"):
            return mistake("benchmarks", f"unknown group {name!r}; {nearest(name, [*GROUPS, 'profile'])}")
    workload = default_workload()
    device = device_name(workload.device)
    facts = about(device)
    committed = results.read(device)
    print(results.heading(facts), flush=True)
    measured = []
    for name in given.groups or GROUPS:
        if name == "profile":
            print(f"\n{profile.summary(workload)}", flush=True)
            continue
        group = GROUPS[name](workload, given.rounds)
        measured.append(group)
        print(f"\n{results.table(group, committed)}", flush=True)
    if given.save and measured:
        print(f"\nwritten: {results.save(device, facts, measured)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
