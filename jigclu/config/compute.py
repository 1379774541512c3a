"""What a backbone and a method compute, counted from the config. No torch."""

from __future__ import annotations

from jigclu.config.stages import PretrainConfig

# Blocks of the four stages, and whether a block is a bottleneck (He et al. 2016, Table 1).
RESNETS = {
    "resnet10": ((1, 1, 1, 1), False),
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}
FORWARDS_A_STEP = 3  # a backward pass costs two forward passes


def giga_multiply_adds(backbone: str, size: int) -> float:
    """Multiply-adds (10^9) of one forward pass of the convolutions on an image of `size` x `size` pixels; torchvision's
    ResNets, whose bottlenecks have their stride in the 3 x 3 convolution."""
    blocks, bottleneck = RESNETS[backbone]

    def halved(side: int) -> int:
        return -(-side // 2)

    side = halved(size)
    total, channels = 7 * 7 * 3 * 64 * side**2, 64
    side = halved(side)  # the max-pool
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(count):
            inner, stride = side, 2 if stage and not block else 1
            side = halved(side) if stride == 2 else side
            out = 4 * width if bottleneck else width
            if bottleneck:
                total += channels * width * inner**2 + (9 * width * width + width * out) * side**2
            else:
                total += 9 * (channels + width) * width * side**2
            if channels != out:
                total += channels * out * side**2
            channels = out
    return total / 1e9


def forward_passes(config: PretrainConfig) -> float:
    """Forward passes of the backbone per training image, a backward pass counted as two: JigClu 3, MoCo 4, SimCLR 6."""
    return FORWARDS_A_STEP * config.method.passes


def cost_metrics(config: PretrainConfig, images_seen: int) -> dict[str, float]:
    """`forwards`: passes per training image; `gmac`: 10^9 multiply-adds per training image; `images_seen`: training images,
    counted in every epoch."""
    forwards = forward_passes(config)
    gmac = forwards * giga_multiply_adds(config.backbone, config.image_size)
    return {"forwards": forwards, "gmac": gmac, "images_seen": float(images_seen)}
