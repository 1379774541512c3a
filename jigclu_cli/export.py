"""`jigclu export JOB FILE`: copy the encoder weights of a finished pretraining job."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from jigclu_cli.arguments import Parser

EPILOG = """The file holds a state_dict with torchvision's ResNet names, without the fully connected layer:
  network.load_state_dict(torch.load("encoder.pt", weights_only=True), strict=False)
example:
  jigclu export 3f9c encoder.pt
environment: JIGCLU_STORE (job folders, default runs/)"""


def parser(prog: str = "jigclu export") -> Parser:
    command = Parser(prog=prog, description=__doc__, epilog=EPILOG)
    command.add_argument("job", metavar="JOB", help="id of a pretraining job, or the beginning of one")
    command.add_argument("file", metavar="FILE", type=Path, help="where to write the weights; must not exist")
    command.add_version()
    return command


def main(words: list[str] | None = None, prog: str = "jigclu export") -> int:
    """Exit code: 0, or 2 with one line that explains what is wrong."""
    args = parser(prog).parse_args(words)
    try:
        size = export(Path(os.environ.get("JIGCLU_STORE") or "runs"), args.job, args.file)
    except (OSError, ValueError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    print(f"{args.file}: {size / 1e6:.1f} MB")
    return 0


def export(store: Path, job: str, file: Path) -> int:
    """Copies the job's encoder.pt to the file; its size in bytes. Raises ValueError or OSError."""
    folders = sorted(path for path in (store / "pretrain").glob("*") if path.name.startswith(job))
    if not store.is_dir():
        raise ValueError(f"there is no store at {store.absolute()}; run an experiment first, or set JIGCLU_STORE")
    if len(folders) > 1:
        raise ValueError(f"several pretraining jobs begin with {job!r}: {', '.join(path.name for path in folders[:5])}")
    if not folders:
        raise ValueError(f"no pretraining job in {store.absolute()} begins with {job!r}")
    source = folders[0] / "encoder.pt"
    if not (folders[0] / "result.json").exists() or not source.exists():
        raise ValueError(f"job {folders[0].name} is not done: it has no final encoder yet")
    with open(source, "rb") as weights, open(file, "xb") as copy:
        shutil.copyfileobj(weights, copy)
    return file.stat().st_size
