"""The environment that a job starts in: the user's, without what other launchers left there."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Set by torchrun, Lightning, MPI or an interactive SLURM job, and believed by torch.distributed and submitit. A rank or
# a number of ranks that is left over makes a job wait for others that never start, or take itself for another rank. The
# worker alone sets them.
RANKS = re.compile(
    r"(LOCAL_|NODE_|GROUP_|ROLE_)?RANK|((LOCAL|GROUP|ROLE)_)?WORLD_SIZE|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+"
)
LAUNCHERS = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "PMI_", "PMIX_", "OMPI_")
KEPT = ("SLURM_CONF",)


def without_ranks(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables, but for those that say which rank of how many a process is."""
    return {name: value for name, value in variables.items() if not RANKS.fullmatch(name)}


def without_launchers(variables: Mapping[str, str]) -> dict[str, str]:
    """without_ranks, and without the variables of a SLURM job or an MPI run around this process."""
    return {
        name: value
        for name, value in without_ranks(variables).items()
        if name in KEPT or not name.startswith(LAUNCHERS)
    }
