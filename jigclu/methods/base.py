"""What a pretext method is to the training loop."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from jigclu.data.loader import Batch


class Method(Protocol):
    """One pretext task. `network` is what is trained, and its state_dict all the state that there is.

    The loop may wrap it for several ranks and then passes the wrapped one.
    """

    @property
    def network(self) -> nn.Module: ...

    def prepare(self, batch: Batch, epoch: int, step: int) -> tuple[Tensor, ...]:
        """The network's input first, then its targets, from decoded images on the device. No gradient, no state."""

    def loss(self, network: nn.Module, prepared: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The scalar to minimise, and what to log, `loss` first; of the global batch, the same on every rank.

        Once a training step: a method may keep state in the network's buffers.
        """

    def encoder_state_dict(self) -> dict[str, Tensor]:
        """The backbone under torchvision's key names."""

    def picture(self, prepared: tuple[Tensor, ...]) -> Tensor:
        """(N, 3, h, w) in [0, 1]: what the network saw, for people to look at."""
