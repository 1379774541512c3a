"""The method against numbers from the released code (golden/README.md says how each was produced)."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jigclu.losses import clustering_loss, location_loss
from jigclu.montage import stitch
from jigclu.network import JigCluNetwork, decouple
from jigclu.patches import split_boxes
from jigclu.training.schedules import cosine, steps

OFFICIAL_POSITIONS = [0, 2, 1, 3]  # the released order is TL, BL, TR, BR; this suite numbers them row-major


def load(golden: Path, name: str) -> Any:
    return json.loads((golden / name).read_text())


def test_clustering_loss_is_equation_2(golden: Path) -> None:
    cases = load(golden, "g1_cluster_loss.json")
    assert len(cases) == 18
    for case in cases:
        dtype = getattr(torch, case["dtype"])
        rs = np.random.RandomState(case["seed"])
        count = 4 * case["n"]
        x = torch.from_numpy(rs.standard_normal((count, case["D"]))).to(dtype).requires_grad_()
        labels = torch.from_numpy(rs.permutation(count)) % case["n"]
        loss = clustering_loss(x, labels, case["T"])
        tolerance = 1e-9 if dtype == torch.float64 else 1e-5
        assert loss.item() == pytest.approx(case["paper_eq2"], rel=tolerance)
        official = loss * (case["T"] / 0.07)
        assert official.item() == pytest.approx(case["official_loss"], rel=tolerance)
        official.backward()
        assert x.grad is not None
        assert x.grad.norm().item() == pytest.approx(case["grad_norm"], rel=tolerance)
        assert x.grad.abs().sum().item() == pytest.approx(case["grad_abs_sum"], rel=10 * tolerance)


def test_clustering_gradient_matches_entry_by_entry(golden: Path) -> None:
    arrays = np.load(golden / "g1_cluster_loss.npz")
    first = load(golden, "g1_cluster_loss.json")[0]
    labels = torch.tensor(first["perm"]) % first["n"]
    for temperature in (0.07, 0.3, 1.0):
        x = torch.from_numpy(arrays["x"]).requires_grad_()
        (clustering_loss(x, labels, temperature) * temperature / 0.07).backward()
        torch.testing.assert_close(x.grad, torch.from_numpy(arrays[f"grad_T{temperature}"]), rtol=1e-9, atol=1e-12)


def test_decouple_where_paper_and_code_agree(golden: Path) -> None:
    """7 -> 8 and 8 -> 8; the released code forces 8 on every other size, the paper does not."""
    seen = 0
    for case in load(golden, "g2_decouple.json"):
        side = case["in_shape"][-1]
        if side not in (7, 8):
            continue
        maps = torch.from_numpy(np.random.RandomState(100 + side).standard_normal((2, 3, side, side)))
        wanted = torch.tensor(case["out"], dtype=torch.float64).view(2, 3, 4).permute(2, 0, 1).reshape(8, 3)
        torch.testing.assert_close(decouple(maps, 2), wanted, rtol=0, atol=1e-12)
        seen += 1
    assert seen == 2


def test_boxes_equal_the_released_crops(golden: Path) -> None:
    cases = load(golden, "g3_crop_boxes.json")
    assert len(cases) == 64
    for case in cases:
        actual = [split_boxes(case["W"], case["H"], 2, case["c"])[k] for k in OFFICIAL_POSITIONS]
        theirs = [
            (p["left"], p["upper"], p["left"] + p["size_wh"][0], p["upper"] + p["size_wh"][1]) for p in case["patches"]
        ]
        assert actual == theirs, case


def test_montage_order_and_labels(golden: Path) -> None:
    for case in load(golden, "g4_montage.json")["cases"]:
        n, permutation = case["n"], torch.tensor(case["permute"])
        ids = torch.arange(4 * n, dtype=torch.float64)[:, None, None, None]
        montages = stitch(ids, permutation, 2)
        assert montages[:, 0].flatten(1).long().tolist() == case["montage_ids_TL_TR_BL_BR"]
        assert decouple(montages, 2)[:, 0].long().tolist() == case["vector_patch_ids"]
        assert (permutation % n).tolist() == case["label_clu"]
        assert (permutation // n).tolist() == case["label_loc"]


def official_weights(network: JigCluNetwork) -> dict[str, torch.Tensor]:
    """The g5 fixture's weights under the released key names, rounded to float32."""
    weights = {}
    for key, value in network.state_dict().items():
        name = key.removeprefix("encoder.resnet.").replace("clustering.", "fc_clu.").replace("location.", "fc_loc.")
        shape = tuple(value.shape)
        rs = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)
        if name.endswith(("running_mean", "num_batches_tracked")):
            array = np.zeros(shape)
        elif name.endswith("running_var"):
            array = np.ones(shape)
        elif len(shape) == 4:
            array = rs.standard_normal(shape) * np.sqrt(2 / (shape[0] * shape[2] * shape[3]))
        elif len(shape) == 2:
            array = rs.standard_normal(shape) / np.sqrt(shape[1])
        elif name.startswith("fc_"):
            array = 0.01 * rs.standard_normal(shape)
        elif name.endswith("weight"):
            array = 1 + 0.1 * rs.standard_normal(shape)
        else:
            array = 0.1 * rs.standard_normal(shape)
        weights[name] = torch.from_numpy(np.asarray(array)).float()
    return weights


def official_patches() -> torch.Tensor:
    base = np.stack([np.random.RandomState(2000 + i).standard_normal((3, 112, 112)) for i in range(4)])
    noise = [np.random.RandomState(1000 + p).standard_normal((4, 3, 112, 112)) for p in range(4)]
    return torch.from_numpy(np.concatenate([base + 0.5 * noise[p] + 0.3 * p for p in range(4)]))


def test_fixture_is_the_one_of_the_golden_run(golden: Path) -> None:
    check = load(golden, "g5_fixture_check.json")
    weights = {arch: official_weights(JigCluNetwork(arch)) for arch in ("resnet18", "resnet50")}
    for entry in check["weights"]:
        assert weights[entry["arch"]][entry["name"]].double().sum().item() == pytest.approx(entry["sum"], rel=1e-5)
    patches = official_patches().view(4, 4, 3, 112, 112)
    for entry in check["inputs"]:
        assert patches[entry["position"]].sum().item() == pytest.approx(entry["sum"], rel=1e-9)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_forward_backward_and_sgd_equal_the_released_run(golden: Path, arch: str, dtype: torch.dtype) -> None:
    case = next(c for c in load(golden, "g5_forward.json") if c["arch"] == arch and c["dtype"] == str(dtype))
    network = JigCluNetwork(arch)
    network.load_official({f"module.encoder.{k}": v for k, v in official_weights(network).items()})
    network = network.to(dtype).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
    patches = official_patches().to(dtype)
    for step in case["steps"][: 3 if dtype == torch.float64 else 1]:
        tolerance = 1e-4 if dtype == torch.float32 else 1e-8 if step["step"] == 0 else 1e-5
        permutation = torch.tensor(step["permute"])
        embeddings, logits = network(stitch(patches, permutation, 2))
        clustering = clustering_loss(embeddings, permutation % 4, 0.3) * (0.3 / 0.07)
        location = location_loss(logits, permutation // 4)
        assert clustering.item() == pytest.approx(step["loss_clu"], rel=tolerance)
        assert location.item() == pytest.approx(step["loss_loc"], rel=tolerance)
        if step["step"] == 0 and dtype == torch.float64:
            arrays = np.load(golden / f"g5_forward_{arch}.npz")
            z = torch.nn.functional.normalize(embeddings, dim=1).detach().numpy()
            np.testing.assert_allclose(z, arrays["z"], rtol=1e-8, atol=1e-10)
            np.testing.assert_allclose(logits.detach().numpy(), arrays["loc_logits"], rtol=1e-8, atol=1e-9)
        optimizer.zero_grad()
        (clustering + location).backward()
        norms = {name: p.grad.double().norm().item() for name, p in network.named_parameters() if p.grad is not None}
        total = sum(norm**2 for norm in norms.values()) ** 0.5
        # Losses are held to golden/README.md's tolerances; a float32 gradient norm is a sum of 10^7 rounded squares.
        assert total == pytest.approx(
            step["grad_norm_total"], rel=10 * tolerance if dtype == torch.float32 else tolerance
        )
        if dtype == torch.float32:
            continue  # one layer's norm moves by 1e-3 with the order of sums; in float64 each is held to 1e-7
        for name, wanted in step.get("grad_norm_by_param", {}).items():  # stored for step 0
            actual = name.replace("encoder.", "encoder.resnet.", 1).replace("encoder.resnet.fc_clu", "clustering")
            actual = actual.replace("encoder.resnet.fc_loc", "location")
            assert norms[actual] == pytest.approx(wanted, rel=10 * tolerance), name
        optimizer.step()


def test_released_checkpoint_keys_all_load(golden: Path) -> None:
    listing = load(golden, "g6_checkpoint_keys_resnet50.json")
    state = {key: torch.zeros(shape) for key, shape in listing["keys"].items()}
    assert len(state) == listing["n_keys"]
    network = JigCluNetwork("resnet50")
    assert sum(p.numel() for p in network.parameters()) == listing["n_params"]
    assert sum(p.numel() for p in network.encoder.parameters()) == listing["n_params_backbone"]
    network.load_official(state)  # with module.encoder.
    network.load_official({key.removeprefix("module.encoder."): value for key, value in state.items()})
    with pytest.raises(KeyError, match="missing"):
        network.load_official({key: value for key, value in state.items() if "conv1" not in key})


def test_learning_rates_by_epoch(golden: Path) -> None:
    wanted = load(golden, "g7_schedules_accuracy.json")
    assert [cosine(0.03, epoch, 200) for epoch in range(200)] == pytest.approx(
        wanted["pretrain_200ep_lr0.03"], rel=1e-12
    )
    assert [steps(10, epoch, (60, 80)) for epoch in range(100)] == pytest.approx(wanted["lincls_100ep_lr10"], rel=1e-12)
