"""What surrounds a run must not change it: the store's path, git's variables, an enclosing repository."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.orchestrator import ROOT, environment, program, refused, run, table8

from jigclu.config import ConfigError
from jigclu.job_folder import JobFolder
from jigclu_cli.arguments import file_problem
from orchestrate import clusters

COMMIT = "from orchestrate.jobs.snapshot import commit; import json; print(json.dumps(commit()))"


def test_a_store_works_whatever_characters_its_path_has(tmp_path: Path) -> None:
    """Job folders, logs, MLflow's file and the copy of the source are below the store, and nothing is beside it."""
    name = "[ab]* t%u $HOME 'x\" \u00fc"
    store = tmp_path / name / "runs"
    store.parent.mkdir()
    words = [*table8(), "--cells", "random"]
    done = run(store, words)
    assert done.returncode == 0, done.stdout + done.stderr
    (job,) = store.glob("linear/*")
    assert JobFolder(job).done and list((job / "logs").glob("*_log.out"))
    assert (store / "mlflow.db").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
    again = run(store, words)
    assert again.returncode == 0 and "done already" in again.stdout, again.stdout + again.stderr


@pytest.mark.parametrize("name", ["%j", "x%ty", "a%20b", "q?a=b", "h#i", "back\\slash", "line\nbreak"])
def test_a_path_that_slurm_or_submitit_would_rewrite_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    store = tmp_path / name / "runs"
    refused(store, [*table8(), "--cells", "random"], "set JIGCLU_STORE to a path without", cwd=tmp_path)
    assert not store.exists()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one commit, whose ignored folder has a copy of the suite."""
    folder = tmp_path_factory.mktemp("enclosing")
    (folder / ".gitignore").write_text("suite/\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-qm", "unrelated")
    shutil.copytree(
        ROOT / "orchestrate", folder / "suite" / "orchestrate", ignore=shutil.ignore_patterns("__pycache__")
    )
    for package in ("jigclu", "jigclu_cli"):
        (folder / "suite" / package).symlink_to(ROOT / package)
    return folder


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True).stdout.strip()


def recorded(tree: Path, **more: str) -> tuple[str, bool]:
    """(commit, dirty) as a job that runs from this tree records it."""
    env = {**environment(tree / "runs"), "PYTHONPATH": str(tree), **more}
    done = subprocess.run([sys.executable, "-c", COMMIT], cwd=tree, env=env, capture_output=True, text=True, check=True)
    sha, dirty = json.loads(done.stdout)
    return sha, dirty


def test_a_copy_in_an_ignored_folder_does_not_record_the_enclosing_repositorys_commit(clone: Path) -> None:
    assert recorded(clone / "suite") == ("", True)


def test_git_variables_do_not_change_the_recorded_commit(clone: Path) -> None:
    """GIT_DIR is set in a git hook, and where somebody keeps dotfiles in git."""
    wrong = {
        "GIT_DIR": str(clone / ".git"),
        "GIT_WORK_TREE": str(ROOT),
        "GIT_INDEX_FILE": str(clone / ".git" / "index"),
    }
    assert recorded(ROOT, **wrong) == recorded(ROOT)
    assert recorded(clone / "suite", **wrong) == ("", True)


def test_without_git_or_with_a_repository_of_somebody_else_there_is_no_commit(clone: Path, tmp_path: Path) -> None:
    assert recorded(clone / "suite", PATH=str(tmp_path)) == ("", True)
    assert recorded(ROOT, PATH=str(tmp_path)) == ("", True)


def test_a_tracked_copy_records_its_commit_and_whether_it_differs(clone: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tracked"
    shutil.copytree(clone / "suite", tree, symlinks=True)
    git(tree, "init", "-q")
    git(tree, "add", "orchestrate")
    (tree / "jigclu").unlink()
    shutil.copytree(ROOT / "jigclu", tree / "jigclu", ignore=shutil.ignore_patterns("__pycache__"))
    git(tree, "add", "jigclu")
    git(tree, "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-qm", "first")
    head = git(tree, "rev-parse", "HEAD")
    assert recorded(tree) == (head, False)
    git(tree, "checkout", "-q", "--detach")
    (tree / "orchestrate" / "__init__.py").write_text("# changed\n")
    assert recorded(tree) == (head, True)


@pytest.mark.parametrize(
    "door", [["-m", "jigclu_cli", "status"], ["-m", "reports"], [str(ROOT / "orchestrate" / "run.py"), "table8"]]
)
def test_a_deleted_current_folder_is_one_line(tmp_path: Path, door: list[str]) -> None:
    (tmp_path / "gone").mkdir()
    command = ["sh", "-c", 'cd gone && rmdir ../gone && exec "$@"', "sh", sys.executable, *door]
    more = {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path, **more), capture_output=True, text=True)
    assert (
        done.returncode == 2 and "the current folder no longer exists" in done.stderr and done.stderr.count("\n") == 1
    )


def test_figures_are_drawn_without_the_backend_that_a_notebook_names(tmp_path: Path) -> None:
    draw = "from reports.figures import bars; import matplotlib; print(matplotlib.get_backend())"
    env = environment(tmp_path, MPLBACKEND="module://no_such_backend.inline")
    done = subprocess.run([sys.executable, "-c", draw], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout.strip().lower() == "agg", done.stderr


def test_a_file_where_a_folder_must_be_is_named() -> None:
    problem = FileExistsError(17, "File exists", str(ROOT / "README.md"))
    assert file_problem(problem) == f"{ROOT / 'README.md'} is a file, not a folder: move it away"


def test_a_gpu_driver_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "nvidia-smi", "exec sleep 60")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(clusters, "PATIENCE", 0.2)
    with pytest.raises(ConfigError, match=r"nvidia-smi does not answer within 0\.2 s"):
        clusters.machine_gpus()
