"""Pretext methods by name, behind one interface (`base.Method`)."""

from jigclu.config import PretrainConfig
from jigclu.methods.base import Method
from jigclu.methods.jigclu import JigClu
from jigclu.training.distributed import Place

METHODS: dict[str, type[JigClu]] = {"jigclu": JigClu}


def build(config: PretrainConfig, seed: int, where: Place) -> Method:
    """The method that the config names, its network freshly initialised on the CPU from torch's global generator."""
    return METHODS[config.method.name](config, seed, where)
