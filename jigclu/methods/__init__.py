"""Pretext methods by name, behind one interface (`base.Method`)."""

import pkgutil

from jigclu.config import PretrainConfig
from jigclu.methods.base import Method
from jigclu.training.distributed import RankInfo

# Method name (the keys of `config.methods.METHODS`) -> implementation, imported when a job needs it.
METHODS = {
    "jigclu": "jigclu.methods.jigclu:JigClu",
    "simclr": "jigclu.methods.simclr:SimCLR",
    "moco": "jigclu.methods.moco:MoCo",
    "supervised": "jigclu.methods.supervised:Supervised",
}


def build(config: PretrainConfig, seed: int, rank_info: RankInfo, classes: int) -> Method:
    """The config's method, its network freshly initialised on the CPU from torch's global generator.

    Args:
        config: its `method.name` chooses the implementation.
        seed: the job's seed; every random number of the method follows from it.
        rank_info: this process's rank and device.
        classes: number of classes of the data set; only `supervised` uses it.

    Raises:
        ConfigError: the method's settings do not fit the batch size or the number of ranks.
    """
    method: Method = pkgutil.resolve_name(METHODS[config.method.name])(config, seed, rank_info, classes)
    return method
