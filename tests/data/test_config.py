"""A mistake in a config is one line that says what the field takes, names the valid choices and the nearest one."""

from __future__ import annotations

from typing import Any

import pytest

from jigclu.config import STAGES, ConfigError, Strict, parse

BLUR = "pretrain.augment.blur_sigma: two numbers are expected"


@pytest.mark.parametrize(
    ("stage", "values", "expected"),
    [
        ("pretrian", {}, "unknown stage 'pretrian'; valid: dense, detect, finetune, knn, linear, pretrain; did you mean pretrain?"),
        ("pretrain", {"epoch": 3}, "unknown key pretrain.epoch; did you mean epochs? valid: augment, "),
        ("pretrain", {"optimizer": {"lrr": 1}}, "unknown key pretrain.optimizer.lrr; valid: lr, momentum, weight_decay; did"),
        ("pretrain", {"method": {"name": "moco", "queu": 3}}, "unknown key pretrain.method.queu; valid: dim, momentum"),
        ("pretrain", {"method": {"name": "moko"}}, "pretrain.method.name: unknown method 'moko'; valid: "),
        ("pretrain", {"method": {"name": "moco", "queue": "x"}}, "pretrain.method.queue: a whole number is expected (got 'x')"),
        ("pretrain", {"backbone": "resnet5"}, "pretrain.backbone: 'resnet5' is not a valid choice; valid: resnet10, resnet101, "),
        ("pretrain", {"epochs": 0}, "pretrain.epochs: must be greater than 0 (got 0)"),
        ("pretrain", {"epochs": 1.5}, "pretrain.epochs: a whole number is expected (got 1.5)"),
        ("pretrain", {"data": "cifar10"}, "pretrain.data: a mapping is expected (got 'cifar10')"),
        ("pretrain", {"augment": {"blur_sigma": 3}}, f"{BLUR}, as in [0.1, 2.0] (got 3)"),
        ("pretrain", {"augment": {"blur_sigma": [1]}}, f"{BLUR}, as in [0.1, 2.0]"),
        ("pretrain", {"augment": {"blur_sigma": [1, 2, 3]}}, BLUR),
        ("pretrain", {"augment": {"blur_sigma": [2, 1]}}, "pretrain.augment.blur_sigma: two positive numbers are expected, the"),
        ("detect", {"detector": {"anchors": [1, 2]}}, "detect.detector.anchors: five numbers are expected (got [1, 2])"),
        ("linear", {"other_lrs": 3}, "linear.other_lrs: a list is expected (got 3)"),
        ("linear", {"other_lrs": [3, "x"]}, "linear.other_lrs.1: a number is expected (got 'x')"),
        ("linear", {"views": -1}, "linear.views: must be greater than 0 (got -1)"),
        ("linear", {"data": {"name": "cifra10"}}, "linear.data.name: unknown data set 'cifra10'; valid: cifar10, cifar100, "),
        ("detect", {"data": {"name": "coca"}}, "detect.data.name: unknown detection data set 'coca'; valid: coco, coco_mini, "),
    ],
)  # fmt: skip
def test_a_mistake_in_a_config_is_one_plain_line(stage: str, values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(stage, values)
    assert str(error.value).startswith(expected) and "\n" not in str(error.value)


@pytest.mark.parametrize("stage", STAGES)
def test_no_python_code_runs_inside_pydantics_serializer(stage: str) -> None:
    """It would make another error of a Ctrl-C at that moment: a traceback instead of one line."""
    seen, left = set(), [STAGES[stage]]
    while left:
        schema = left.pop()
        assert not schema.__pydantic_decorators__.model_serializers, schema
        assert not schema.__pydantic_decorators__.field_serializers, schema
        seen.add(schema)
        values = [getattr(schema(), name) for name in schema.model_fields]
        left += [type(value) for value in values if isinstance(value, Strict) and type(value) not in seen]
    assert len(seen) > 2
