"""`python -m orchestrate sync`: bring MLflow up to date from the job folders."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from jigclu.config import ConfigError
from orchestrate import mirror, tracking


def main() -> int:
    command = argparse.ArgumentParser(prog="python -m orchestrate", description=__doc__)
    command.add_argument("verb", choices=["sync"])
    command.parse_args()
    store = Path(os.environ.get("JIGCLU_STORE", "runs")).absolute()
    if not store.is_dir():
        print(
            f"orchestrate: there is no store at {store}; run an experiment first, or set JIGCLU_STORE", file=sys.stderr
        )
        return 2
    try:
        tracking.prepare(store)
        report = mirror.sync(store)
    except (ConfigError, mirror.MirrorError) as error:
        print(f"orchestrate: {error}", file=sys.stderr)
        return 1
    print(
        f"{report.runs} runs mirrored to {tracking.tracking_uri(store)}, {report.changed} changed, {report.seconds:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
