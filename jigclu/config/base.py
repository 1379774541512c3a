"""Building blocks of every strict schema, and the one-line rendering of its errors. No torch."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Collection
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError


class ConfigError(ValueError):
    """A user's mistake in a config: one line that names the valid choices and the nearest one."""


def nearest(word: str, choices: Collection[str]) -> str:
    """`valid: a, b, c; did you mean b?`: the tail of every error about a name."""
    close = difflib.get_close_matches(word, choices, n=1)
    return f"valid: {', '.join(sorted(choices))}" + (f"; did you mean {close[0]}?" if close else "")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _ascending(values: tuple[float, float]) -> tuple[float, float]:
    if not 0 < values[0] <= values[1]:
        raise ValueError(f"two positive numbers are expected, the smaller one first, not {list(values)}")
    return values


Share = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Range = Annotated[tuple[float, float], AfterValidator(_ascending)]


# -- errors in one line -----------------------------------------------------------------------------------------------
EXPECTED = {  # pydantic's error types -> what the field takes; fixed-length tuples are described from their annotation
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number is expected"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number is expected"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false is expected"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list is expected"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a mapping is expected"),
    "string_type": "text is expected",
}


def error_line(error: ValidationError, model: type[BaseModel], prefix: str = "", hidden: Collection[str] = ()) -> str:
    """The first mistake in `error` as one line, `model` being the schema that raised it.

    `prefix` is put before the key (`pretrain` gives `pretrain.epochs`). `hidden`: fields that a user does not write, left
    out of the valid keys. An unknown key, choice or union member names the valid ones and the nearest.
    """
    errors = error.errors()
    first = next(
        (one for one in errors if one["type"] == "extra_forbidden"), errors[0]
    )  # a typo also leaves a key missing
    kind, given, context = first["type"], first["input"], first.get("ctx", {})
    parts, parents = _walk(model, first["loc"])
    wrong_key = bool(parts) and parts[-1] == "[key]"
    if wrong_key:
        parts, parents = parts[:-1], parents[:-1]
    annotation = parents[-1]
    if kind in ("missing", "too_long", "tuple_type") and (numbers := _numbers(annotation, parents)):
        kind, parts = "tuple", [part for part in parts if not part.isdigit()]
    key = ".".join(filter(None, (prefix, *parts)))
    if kind == "tuple":
        return f"{key}: {numbers}{_got(given)}"
    if kind == "extra_forbidden" or wrong_key:
        choices = _keys(parents[-2] if len(parents) > 1 else model)
        valid = [name for name in choices if name not in hidden]
        return f"unknown key {key}" + (f"; {nearest(parts[-1], valid)}" if valid else "")
    if kind == "union_tag_invalid":
        name = context["discriminator"].strip("'")
        choice = f"{key.rpartition('.')[2]} {context['tag']!r}"
        return f"{key}.{name}: unknown {choice}; {nearest(context['tag'], _quoted(context['expected_tags']))}"
    if kind == "literal_error" and (choices := _quoted(context["expected"])):
        return f"{key}: {given!r} is not a valid choice; {nearest(str(given), choices)}"
    if kind == "missing":
        return f"{key} is missing"
    if kind == "value_error":
        return ": ".join(filter(None, (key, str(context["error"]))))
    return f"{key}: {EXPECTED.get(kind) or first['msg'].replace('Input should be', 'must be')}{_got(given)}"


def _got(given: Any) -> str:
    return "" if isinstance(given, dict | BaseModel) else f" (got {given!r})"


def _quoted(text: str) -> list[str]:
    """The words in `'a', 'b' or 'c'`, as pydantic lists choices."""
    return re.findall(r"'([^']*)'", text)


def _walk(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[list[str], list[Any]]:
    """The location as the user wrote it, and the annotation at each step, `model` first.

    Pydantic also names the chosen member of a union (method.jigclu.m); the user wrote method.m.
    """
    shown: list[str] = []
    annotations: list[Any] = [model]
    for part in loc:
        here = annotations[-1]
        if get_origin(here) in (Union, types.UnionType):
            chosen = [one for one in get_args(here) if part in (_tag(one), getattr(one, "__name__", None))]
            if chosen:
                annotations[-1] = chosen[0]
                continue
        shown.append(str(part))
        annotations.append(_below(here, part))
    return shown, annotations


def _below(annotation: Any, part: int | str) -> Any:
    """The annotation of the field, item or value `part`; None where there is none."""
    for one in _members(annotation):
        if isinstance(one, type) and issubclass(one, BaseModel) and part in one.model_fields:
            return one.model_fields[str(part)].annotation
        arguments = get_args(one)
        if get_origin(one) is dict:
            return arguments[1]
        if get_origin(one) in (tuple, list) and isinstance(part, int):
            return arguments[min(part, len(arguments) - 1) if ... not in arguments else 0]
    return None


def _members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, unwrapped from Annotated; a single annotation is its own member."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for one in get_args(annotation) for member in _members(one))
    return (annotation,)


def _tag(member: Any) -> Any:
    """What names a member of a union that is told by its `name`."""
    fields = getattr(member, "model_fields", {})
    return fields["name"].default if "name" in fields else None


def _keys(annotation: Any) -> list[str]:
    """The keys that a mapping of this annotation takes, where they are a closed list."""
    keys: list[str] = []
    for one in _members(annotation):
        if isinstance(one, type) and issubclass(one, BaseModel):
            keys += one.model_fields
        elif get_origin(one) is dict and get_origin(get_args(one)[0]) is Literal:
            keys += get_args(get_args(one)[0])
    return keys


def _numbers(annotation: Any, parents: list[Any]) -> str:
    """`two numbers are expected, as in [0.1, 2.0]` where the mistake is in a tuple of fixed length, else ""."""
    words = {2: "two", 3: "three", 4: "four", 5: "five"}
    for one in (member for above in (annotation, *parents[-2:-1]) for member in _members(above)):
        arguments = get_args(one)
        if get_origin(one) is tuple and ... not in arguments and len(arguments) in words:
            example = ", as in [0.1, 2.0]" if arguments == (float, float) else ""
            return f"{words[len(arguments)]} numbers are expected{example}"
    return ""
