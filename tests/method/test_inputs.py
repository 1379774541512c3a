"""JigClu's input: the order of split and augmentation (Table 7), the input format (Table 6), and the figures of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from jigclu import augment, counter_rng, methods
from jigclu.config import PretrainConfig, parse
from jigclu.data.canvases import open_dataset
from jigclu.data.loader import Batch, Unreadable, batches
from jigclu.figures import first_batch
from jigclu.losses import clustering_loss, location_loss
from jigclu.methods.jigclu import JigClu
from jigclu.montage import stitch
from jigclu.patches import split_boxes
from jigclu.training.distributed import RankInfo

HERE = RankInfo(0, 1, torch.device("cpu"))
N, SIDE = 6, 32


def config(recipe: dict[str, Any] | None = None, **method: Any) -> PretrainConfig:
    values = {
        "data": {"name": "scenes", "canvas": 64, "train_images": 40, "val_images": 10},
        "backbone": "resnet18",
        "method": method,
        "image_size": SIDE,
        "batch_size": N,
    }
    return parse("pretrain", {**values, "augment": recipe or {}})


def jigclu(recipe: dict[str, Any] | None = None, **method: Any) -> JigClu:
    torch.manual_seed(0)
    return JigClu(config(recipe, **method), 3, HERE)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Six scenes, one made narrower and one lower, so that images have different shapes."""
    dataset = open_dataset(config().data, "train")
    scenes = next(batches(dataset, [list(range(N))], 0, Unreadable(), substitute=True))
    scenes.sizes[1], scenes.sizes[4] = torch.tensor([64, 45]), torch.tensor([50, 64])
    return scenes


def constant(batch: Batch) -> Batch:
    """Every image has a single colour, each a different one."""
    colours = torch.tensor([[40 + 30 * i, 200 - 20 * i, 90 + 10 * i] for i in range(N)], dtype=torch.uint8)
    return batch._replace(canvas=colours[:, :, None, None].expand(-1, -1, 64, 64).contiguous())


def few(batch: Batch, images: list[int]) -> Batch:
    return Batch(*(field[images] for field in batch))


# -- where the augmentation stands -----------------------------------------------------------------------------------


def test_after_augments_every_box_of_the_split(batch: Batch) -> None:
    """Bit-equal to its parts: draw in the boxes, apply, permute, stitch."""
    boxes = torch.tensor([split_boxes(width, height) for height, width in batch.sizes.tolist()])
    parameters = augment.draw(config().augment, 3, 2, batch.indices, boxes, colour=config().augment)
    order = counter_rng.permutation(3, counter_rng.MONTAGE, 2, 5, 4 * N)
    wanted = stitch(augment.apply(batch.canvas, parameters, SIDE // 2), order)
    montages, permutation = jigclu().prepare(batch, 2, 5)
    assert torch.equal(montages, wanted) and torch.equal(permutation, order)


@pytest.mark.parametrize("order", ["after", "during", "before"])
def test_a_samples_patches_do_not_depend_on_the_batch(batch: Batch, order: str) -> None:
    patches = jigclu(augment=order).patches
    whole = patches(batch, 2, 16).view(4, N, 3, 16, 16)
    picked = [4, 1]
    torch.testing.assert_close(
        patches(few(batch, picked), 2, 16).view(4, 2, 3, 16, 16), whole[:, picked], rtol=0, atol=2e-5
    )
    assert not torch.equal(patches(batch, 3, 16).view(4, N, 3, 16, 16), whole)  # another epoch, another draw


def test_before_shares_one_jitter_among_an_images_patches_and_after_does_not(batch: Batch) -> None:
    recipe = {"jitter_probability": 1.0, "gray_probability": 0.0}
    flat = constant(batch)
    for order, shared in (("before", True), ("during", False), ("after", False)):
        patches = jigclu(recipe, augment=order).patches(flat, 0, 16).view(4, N, 3, -1)
        assert patches.std(dim=3).max() < 1e-3  # one colour each
        colours = patches.mean(dim=3)
        apart = (colours - colours[:1]).abs().amax(dim=(0, 2))
        assert (apart < 1e-3).all() if shared else (apart > 1e-2).all(), order


def ramp(batch: Batch, width: int = 64) -> Batch:
    """Red encodes a pixel's x, green its y; every image fills its canvas."""
    x = torch.arange(width, dtype=torch.uint8).expand(width, -1)
    canvas = torch.stack((x * 3, x.T * 3, torch.zeros_like(x)))[None].repeat(N, 1, 1, 1)
    return batch._replace(canvas=canvas, sizes=torch.full((N, 2), width))


PLACE_ONLY = {"jitter_probability": 0.0, "gray_probability": 0.0, "blur_probability": 0.0}


def centres(patches: Tensor) -> tuple[Tensor, Tensor]:
    """(4 * N, 3, h, w) normalised ramps -> the (4, N) source pixels x and y at each patch's centre."""
    pixels = augment.to_pixels(patches).mean(dim=(2, 3)).view(4, N, 3) * 255 / 3
    return pixels[..., 0], pixels[..., 1]


def test_during_splits_one_random_crop_of_the_image(batch: Batch) -> None:
    """The crop is drawn once per image; the patches are the boxes of the released code's split of that crop."""
    recipe = {**PLACE_ONLY, "crop_scale": (0.2, 0.5)}
    source = ramp(batch)
    boxes = torch.tensor([[[0, 0, 64, 64]]]).expand(N, -1, -1)
    drawn = augment.draw(config(recipe).augment, 3, 1, source.indices, boxes, colour=config(recipe).augment)
    x, y = centres(jigclu(recipe, augment="during").patches(source, 1, 16))
    for image, (left, upper, width, height) in enumerate(drawn.crop.tolist()):
        for position, (x0, y0, x1, y1) in enumerate(split_boxes(width, height)):
            assert left + x0 >= 0 and left + x1 <= 64 and x1 - x0 < width
            assert x[position, image].item() == pytest.approx(left + (x0 + x1 - 1) / 2, abs=0.6)
            assert y[position, image].item() == pytest.approx(upper + (y0 + y1 - 1) / 2, abs=0.6)


def test_during_flips_every_patch_and_before_the_image(batch: Batch) -> None:
    source = ramp(batch)

    def flipped(order: str) -> Tensor:
        patches = jigclu(PLACE_ONLY, augment=order).patches(source, 0, 16).view(4, N, 3, 16, 16)
        return patches[:, :, 0, :, 0].mean(2) > patches[:, :, 0, :, -1].mean(2)  # red falls from left to right

    during, before = flipped("during"), flipped("before")
    assert (during.any(0) & ~during.all(0)).any()  # some patches of an image are flipped and some are not
    assert torch.equal(before, before[:1].expand(4, -1)) and before.any() and not before.all()


def test_before_splits_the_augmented_square(batch: Batch) -> None:
    """Without overlap the four patches are the augmented image's quarters, pixel by pixel."""
    boxes = torch.tensor([[[0, 0, width, height]] for height, width in batch.sizes.tolist()])
    drawn = augment.draw(config().augment, 3, 0, batch.indices, boxes, colour=config().augment)
    images = augment.apply(batch.canvas, drawn, SIDE)
    patches = jigclu(augment="before", extend=0.0).patches(batch, 0, SIDE // 2).view(2, 2, N, 3, SIDE // 2, SIDE // 2)
    wanted = images.view(N, 3, 2, SIDE // 2, 2, SIDE // 2).permute(2, 4, 0, 1, 3, 5)
    torch.testing.assert_close(patches, wanted, rtol=0, atol=1e-5)


# -- the form of the input -------------------------------------------------------------------------------------------


class Mean(nn.Module):
    """A backbone without weights: 512 copies of each pixel's mean over colours."""

    def maps(self, images: Tensor) -> Tensor:
        return images.mean(dim=1, keepdim=True).expand(-1, 512, -1, -1)


@pytest.mark.parametrize(("form", "size"), [("small", SIDE // 2), ("scaled", SIDE)])
def test_patches_alone_keep_their_order(batch: Batch, form: str, size: int) -> None:
    """Vector position * N + image comes from that patch: given patches whose mean is their id, the network returns the ids."""
    method = jigclu(input=form)
    patches, permutation = method.prepare(batch, 0, 0)
    assert patches.shape == (4 * N, 3, size, size) and torch.equal(permutation, torch.arange(4 * N))
    method.network.encoder = Mean()  # type: ignore[assignment]
    method.network.clustering = method.network.location = nn.Identity()  # type: ignore[assignment]
    ids = torch.arange(4.0 * N)[:, None, None, None] + torch.linspace(-0.4, 0.4, size)[:, None]
    embeddings, logits = method.network(ids.expand(-1, 3, -1, size))
    assert embeddings.shape == (4 * N, 512)
    torch.testing.assert_close(embeddings[:, 7], torch.arange(4.0 * N), rtol=0, atol=1e-4)
    torch.testing.assert_close(logits, embeddings)


@pytest.mark.parametrize("form", ["small", "scaled", "montage"])
def test_the_objective_is_equation_4_on_the_networks_vectors(batch: Batch, form: str) -> None:
    method = jigclu(input=form, loss_scale="paper", m=2)
    method.network.eval()  # the same vectors twice
    prepared = method.prepare(batch, 0, 0)
    total, logged = method.loss(method.network, prepared)
    embeddings, logits = method.network(prepared[0])
    order = torch.arange(4 * N) if form != "montage" else counter_rng.permutation(3, counter_rng.MONTAGE, 0, 0, 4 * N)
    wanted = clustering_loss(embeddings, order % N, 0.3) + location_loss(logits, order // N)
    assert total.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert next(iter(logged)) == "loss" and logged["loss"] == total
    total.backward()
    assert all(p.grad is not None for p in method.network.parameters())


# -- figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [2, 3])
def test_the_first_batch_is_drawn(batch: Batch, tmp_path: Path, m: int) -> None:
    method = jigclu(m=m)
    method.draw_figures(batch, method.prepare(batch, 0, 0), tmp_path)
    sizes = {}
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            sizes[path.stem] = image.size
    assert sizes.keys() == {"montage", "split", "patches", "inputs"}
    patch, images, gap = SIDE // m, 4, 2
    assert sizes["patches"] == ((1 + 2 * m * m) * (patch + gap) + gap, images * (patch + gap) + gap)
    grids = [2 * m * (patch + gap) + gap, 2 * m * (SIDE + gap) + gap, 2 * (m * patch + gap) + gap]
    assert sizes["inputs"] == (sum(grids) + 3 * 16, grids[1] + 16)


def test_the_boxes_are_drawn_where_the_split_is(batch: Batch) -> None:
    """Each box's corner has its colour; a 64-pixel image is shown four times as large."""
    picture = first_batch.draw_boxes(jigclu().patches, few(batch, [0, 2]))[:, 8:-8]
    rgb = torch.tensor([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in first_batch.COLOURS[:4]]) / 255
    for position, (left, upper, _, _) in enumerate(split_boxes(64, 64)):
        inset = 3 * (position // 2 + position % 2)
        shown = picture[:, 4 * upper + inset + 1, 8 + 4 * left + inset + 1]
        torch.testing.assert_close(shown, rgb[position], rtol=0, atol=1e-2)


def test_the_number_of_classes_reaches_the_method() -> None:
    values = config().model_dump() | {"method": {"name": "supervised"}}
    built = methods.build(parse("pretrain", values), 0, HERE, 7)
    assert built.network.head.out_features == 7  # type: ignore[union-attr]
