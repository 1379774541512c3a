"""Pretext methods by name, behind one interface (`base.Method`)."""

from collections.abc import Callable

from jigclu.config import PretrainConfig
from jigclu.methods.base import Method
from jigclu.methods.jigclu import JigClu
from jigclu.methods.moco import MoCo
from jigclu.methods.simclr import SimCLR
from jigclu.methods.supervised import Supervised
from jigclu.training.distributed import RankInfo

METHODS: dict[str, Callable[[PretrainConfig, int, RankInfo, int], Method]] = {
    "jigclu": JigClu,
    "simclr": SimCLR,
    "moco": MoCo,
    "supervised": Supervised,
}


def build(config: PretrainConfig, seed: int, rank_info: RankInfo, classes: int) -> Method:
    """The method that the config names, its network freshly initialised on the CPU from torch's global generator.

    `classes`: how many the data set has; only `supervised` looks at it. Raises ConfigError where the method's numbers do not fit
    the batch or the ranks.
    """
    return METHODS[config.method.name](config, seed, rank_info, classes)
