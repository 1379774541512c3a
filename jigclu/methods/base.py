"""The interface between a pretext method and the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from torch import Tensor, nn

from jigclu.data.loader import Batch
from jigclu.figures import first_batch

Logged = dict[str, Tensor | float]


class Method(ABC):
    """One pretext task, built as `Class(config, seed, rank_info, classes)`; `classes`: number of classes of the data set.

    `network` is trained, and its state_dict is the method's whole state. With several ranks the loop wraps it and passes the
    wrapped network to `loss`.
    """

    network: nn.Module

    @abstractmethod
    def prepare(self, batch: Batch, epoch: int, step: int) -> tuple[Tensor, ...]:
        """Turn decoded images into the network's input (first) and its targets. No gradient, no state."""

    @abstractmethod
    def loss(self, network: nn.Module, prepared: tuple[Tensor, ...]) -> tuple[Tensor, Logged]:
        """The scalar to minimise and the values to log, `loss` first: over the global batch, the same on every rank.

        Called once per training step, so a method may update state in the network's buffers.
        """

    @abstractmethod
    def encoder_state_dict(self) -> dict[str, Tensor]:
        """The backbone under torchvision's key names."""

    @abstractmethod
    def picture(self, prepared: tuple[Tensor, ...]) -> Tensor:
        """The network's input for display: (N, 3, h, w) in [0, 1]."""

    def draw_figures(self, batch: Batch, prepared: tuple[Tensor, ...], folder: Path) -> None:
        """Draw the first batch into `folder`: inputs.png. Called on rank 0 only, so it must not wait for other ranks."""
        first_batch.draw_inputs(self.picture(prepared), folder / "inputs.png")

    def final_metrics(self, batch: Batch, epoch: int, folder: Path) -> dict[str, float]:
        """Metrics of the trained network on a few validation images, augmented as in `epoch`; figures go to `folder`.

        Called on rank 0 only. Most methods have none.
        """
        return {}
