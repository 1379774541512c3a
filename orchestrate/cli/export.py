"""`jigclu export JOB FILE`: copy the encoder weights of a finished pretraining job."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import BinaryIO

from jigclu.config import ConfigError
from jigclu.files import UnreadableFile
from jigclu_cli.arguments import Parser, file_problem, mistake, store_from_environment
from jigclu_cli.output import steady
from orchestrate.cli.select import check_store, select_one

EPILOG = """The file holds a state_dict with torchvision's ResNet names, without the fully connected layer:
  network.load_state_dict(torch.load("encoder.pt", weights_only=True), strict=False)
example:
  jigclu export 3f9c encoder.pt
environment: JIGCLU_STORE (job folders, default runs/)"""


def parser(prog: str = "jigclu export") -> Parser:
    command = Parser(prog=prog, description=__doc__, epilog=EPILOG)
    command.add_argument("job", metavar="JOB", help="id of a pretraining job, or its beginning (at least 4 characters)")
    command.add_argument("file", metavar="FILE", type=Path, help="where to write the weights; must not exist")
    command.add_version()
    return command


@steady
def main(words: list[str] | None = None, prog: str = "jigclu export") -> int:
    """Exit code: 0, or 2 with one line that explains what is wrong."""
    args = parser(prog).parse_args(words)
    store = store_from_environment().absolute()
    try:
        check_store(store)
        size = export(store, args.job, args.file)
    except (ConfigError, UnreadableFile) as error:
        return mistake(prog, error)
    except OSError as error:
        return mistake(prog, file_problem(error))
    print(f"{args.file}: {size / 1e6:.1f} MB")
    return 0


def export(store: Path, word: str, file: Path) -> int:
    """Copy the job's encoder.pt to a new file; returns its size in bytes.

    Raises ConfigError if the job has no final encoder, or if the file exists or cannot be written.
    """
    if str(file) == "-":
        raise ConfigError("- is no file name: write the name of a new file")
    folder = select_one(store, word)
    stage, source = str(folder.job.get("stage", "")), folder.path / "encoder.pt"
    if stage != "pretrain":
        raise ConfigError(f"{folder.id} is a {stage} job; only pretrain jobs have an encoder")
    if not folder.done or not source.is_file():
        raise ConfigError(f"{folder.id} is not done: it has no final encoder yet")
    if not source.stat().st_size:
        raise ConfigError(f"{source} is empty: the file is damaged")
    with open(source, "rb") as weights:
        try:
            with open(file, "xb") as copy:
                _copy(weights, copy, file)
        except OSError as error:
            raise ConfigError(f"cannot write {file}: {error.strerror}") from None
    return file.stat().st_size


def _copy(weights: BinaryIO, copy: BinaryIO, file: Path) -> None:
    """The whole file, or none."""
    try:
        shutil.copyfileobj(weights, copy)
        copy.flush()
    except BaseException:
        file.unlink()
        raise
