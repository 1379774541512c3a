"""Paper §3.2, the network: any ResNet, a parameter-free decouple module, an MLP to cluster and an FC to locate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from jigclu.config import ConfigError


def decouple(features: Tensor, m: int = 2) -> Tensor:
    """Split feature maps into one vector per patch (paper §3.2); no parameters.

    The map is enlarged bilinearly to the next multiple of m on each side ("We enlarge the feature map instead of narrowing
    it to avoid information loss") and each of the m x m parts is averaged.

    Args:
        features: (N, C, H, W), the backbone's maps of N montages.
        m: patches along each side of a montage.

    Returns:
        (m*m*N, C): vector q * N + j is montage j, position q (row-major), the order of `montage.stitch`'s permutation.
    """
    height, width = (-(-side // m) * m for side in features.shape[2:])
    if (height, width) != tuple(features.shape[2:]):
        features = F.interpolate(features, size=(height, width), mode="bilinear", align_corners=False)
    pooled = F.adaptive_avg_pool2d(features, m)
    return pooled.flatten(2).permute(2, 0, 1).reshape(-1, pooled.shape[1])


class Backbone(nn.Module):
    """A torchvision ResNet without its classifier. `dim`: channels of the last feature map.

    `resnet10`, which torchvision has no name for, is its ResNet with one basic block in each of the four stages.
    """

    def __init__(self, name: str = "resnet50"):
        super().__init__()
        small = name == "resnet10"
        self.resnet = ResNet(BasicBlock, [1, 1, 1, 1]) if small else torchvision.models.get_model(name, weights=None)
        self.dim: int = self.resnet.fc.in_features
        self.resnet.fc = nn.Identity()

    def maps(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to feature maps (N, dim, ~H/32, ~W/32)."""
        net = self.resnet
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        return net.layer4(net.layer3(net.layer2(net.layer1(x))))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to features (N, dim) by global average pool: what evaluation probes."""
        return self.maps(images).mean(dim=(2, 3))

    def weights(self) -> dict[str, Tensor]:
        """Copy the state under torchvision's ResNet key names: the content of encoder.pt."""
        return {key: value.detach().clone() for key, value in self.resnet.state_dict().items()}


def mlp(width: int, dim: int) -> nn.Sequential:
    """Head of JigClu and MoCo v2: Linear-ReLU-Linear from the backbone's width to `dim`, no BN."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, dim))


def simclr_head(width: int, dim: int) -> nn.Sequential:
    """SimCLR's head from `width` to `dim`: batch norm after both layers, which have no bias; the last batch norm has none either.

    Source: google-research/simclr, tf2/model.py, LinearLayer and ProjectionHead with num_proj_layers 2 (as in SimCLR v1).
    """
    last = nn.BatchNorm1d(dim)
    last.bias.requires_grad_(False)  # stays 0
    return nn.Sequential(
        nn.Linear(width, width, bias=False),
        nn.BatchNorm1d(width),
        nn.ReLU(inplace=True),
        nn.Linear(width, dim, bias=False),
        last,
    )


class EncoderWithHead(nn.Module):
    """Images (N, 3, S, S) -> (N, dim): backbone, global average pool, and a head: `mlp`, `simclr_head` or one linear layer."""

    def __init__(self, backbone: str, dim: int, head: Literal["mlp", "bn", "linear"] = "mlp"):
        super().__init__()
        self.encoder = Backbone(backbone)
        build: dict[str, Callable[[int, int], nn.Module]] = {"mlp": mlp, "bn": simclr_head, "linear": nn.Linear}
        self.head = build[head](self.encoder.dim, dim)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, S, S) to vectors (N, dim)."""
        return self.head(self.encoder(images))


class JigCluNetwork(nn.Module):
    """JigClu's network: backbone, `decouple`, a clustering head and a location head (paper §3.2).

    The paper gives no sizes of the heads; they are the released code's (protocols.md §1.4, D6): Linear-ReLU-Linear from the
    backbone's width to `dim`, no BN; one Linear to the m*m positions.

    Args:
        backbone: name of a torchvision ResNet.
        m: patches along each side of a montage.
        dim: length of an embedding.
        montage: False if the input is single patches (m*m*N, 3, h, w) instead of montages (§5.1, Figure 5 a and b): each gives
            one vector, in the patches' own order, and nothing is decoupled.
    """

    def __init__(self, backbone: str = "resnet50", m: int = 2, dim: int = 128, montage: bool = True):
        super().__init__()
        self.grid = m if montage else 1
        self.encoder = Backbone(backbone)
        width = self.encoder.dim
        self.clustering = mlp(width, dim)
        self.location = nn.Linear(width, m * m)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embed and locate the patches of montages.

        Args:
            images: (N, 3, S, S) montages, normalised.

        Returns:
            Embeddings (m*m*N, dim), not normalised, and position logits (m*m*N, m*m), both in the order of `decouple`.
        """
        vectors = decouple(self.encoder.maps(images), self.grid)
        return self.clustering(vectors), self.location(vectors)

    def encoder_state_dict(self) -> dict[str, Tensor]:
        """Copy the backbone's state under torchvision's ResNet key names, without heads."""
        return self.encoder.weights()

    def load_official(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the released checkpoint (golden g6).

        The weights are not changed: the location logits stay column-major (TL, BL, TR, BR; protocols.md §1.1), whereas this
        network, when it is trained here, numbers positions row-major.

        Args:
            state_dict: its keys, with or without the prefix `module.encoder.`.

        Raises:
            KeyError: keys are missing or unknown; the message names the first of them.
        """
        state = {}
        for key, value in state_dict.items():
            key = key.removeprefix("module.").removeprefix("encoder.")
            if key.startswith("fc_clu."):
                state["clustering." + key.removeprefix("fc_clu.")] = value
            elif key.startswith("fc_loc."):
                state["location." + key.removeprefix("fc_loc.")] = value
            else:
                state["encoder.resnet." + key] = value
        result = self.load_state_dict(state, strict=False)
        if result.missing_keys or result.unexpected_keys:
            raise KeyError(
                f"not a released JigClu checkpoint: missing {result.missing_keys[:3]}, unknown {result.unexpected_keys[:3]}"
            )


def _form(value: object) -> str:
    """`64 x 3 x 7 x 7 float32`. The type counts: copying would round float16 or integers without a word."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    kind = str(value.dtype).removeprefix("torch.")
    return f"{' x '.join(map(str, value.shape))} {kind}{'' if value.layout is torch.strided else ' sparse'}".strip()


def load_encoder(name: str, state_dict: Mapping[str, Tensor] | None) -> Backbone:
    """Build a backbone with the weights of an encoder.pt, or with torchvision's initialisation if `state_dict` is None.

    Raises:
        ConfigError: they are not a `name`'s weights; one line with the first that is missing, unknown or of another shape.
    """
    backbone = Backbone(name)
    if state_dict is not None:
        own = {key: _form(value) for key, value in backbone.resnet.state_dict().items()}
        given = {key: _form(value) for key, value in state_dict.items()}
        if wrong := [key for key in {**own, **given} if own.get(key) != given.get(key)]:
            first = wrong[0]
            raise ConfigError(
                f"the encoder does not fit {name}: {len(wrong)} of its tensors are missing, unknown or of another shape or type, "
                f"the first is {first} ({given.get(first, 'missing')}, expected {own.get(first, 'none')})"
            )
        backbone.resnet.load_state_dict(dict(state_dict))
    return backbone
