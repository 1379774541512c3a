"""`current_fingerprint`: what a job with a config would record as its data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.packs import TINY, TINY_JPEG, packed
from helpers.small_cifar import small_cifar

from jigclu.config import ConfigError, DataConfig, DetectConfig, KnnConfig, LinearConfig, PretrainConfig
from jigclu.data.catalog import SPLITS, catalogue, current_fingerprint


def recorded(data: DataConfig, root: Path) -> list[str]:
    return [catalogue(data, split, root).fingerprint for split in SPLITS]


def test_pretraining_reads_train_and_the_others_both_splits(tiny: Path) -> None:
    train, val = recorded(TINY, tiny)
    assert current_fingerprint(PretrainConfig(data=TINY), tiny) == train
    assert current_fingerprint(LinearConfig(data=TINY), tiny) == f"{train}+{val}"
    assert current_fingerprint(KnnConfig(data=TINY), tiny) == f"{train}+{val}"


def test_packs_cifar_and_scenes_have_the_fingerprint_of_what_a_job_opens(tiny: Path) -> None:
    packed(TINY_JPEG, tiny)
    small_cifar(tiny)
    for data in (TINY_JPEG, DataConfig(name="cifar10"), DataConfig(name="scenes", train_images=20, val_images=10)):
        assert current_fingerprint(LinearConfig(data=data), tiny) == "+".join(recorded(data, tiny))


def test_missing_data_is_one_line(tmp_path: Path) -> None:
    for config in (PretrainConfig(data=TINY), DetectConfig()):
        with pytest.raises(ConfigError, match="looked in"):
            current_fingerprint(config, tmp_path)


def test_it_needs_no_torch(tiny: Path) -> None:
    small_cifar(tiny)
    code = (
        "import sys\nfrom pathlib import Path\nfrom jigclu.config import DataConfig, LinearConfig\n"
        "from jigclu.data.catalog import current_fingerprint\n"
        "for name in ('cifar10', 'scenes'):\n"
        "    current_fingerprint(LinearConfig(data=DataConfig(name=name)), Path(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tiny)], capture_output=True, check=True).stderr == b""
