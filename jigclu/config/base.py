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


LONG_LIST = 10  # names; the nearest one comes before a longer list


def nearest(word: str, choices: Collection[str], more: str = "") -> str:
    """`valid: a, b, c; did you mean b?`: the tail of every error about a name. `more`: what else is valid, in words."""
    lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), lower, n=1)
    valid = f"valid: {', '.join(sorted(choices))}{more}"
    if not close:
        return valid
    hint = f"did you mean {lower[close[0]]}?"
    return f"{hint} {valid}" if len(choices) > LONG_LIST or more else f"{valid}; {hint}"


class AddedLater:
    """Marks a setting that older jobs do not have: at its default it is not written, so that their ids stay as they are."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def plain(config: Strict) -> dict[str, Any]:
    """The config as JSON values, without the settings of `AddedLater` that have their default."""
    values = config.model_dump(mode="json")
    _drop_added(config, values)  # not a serializer of the model: pydantic makes another error of a Ctrl-C inside one
    return values


def _drop_added(config: Strict, values: dict[str, Any]) -> None:
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if AddedLater in field.metadata and value == field.default:
            del values[name]
        elif isinstance(value, Strict):
            _drop_added(value, values[name])


# Numbers are numbers: no text ("3"), no true or yes, no NaN, no infinity, and nothing that no machine could hold.
Integer = Annotated[int, Field(strict=True)]
Whole = Annotated[Integer, Field(ge=0, le=10**9)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Number = Annotated[Real, Field(ge=-1e9, le=1e9)]


def not_boolean(value: Any) -> Any:
    """For a choice of numbers: pydantic takes true for 1."""
    if isinstance(value, bool):
        raise ValueError(f"a number is expected{_got(value)}")
    return value


def _ascending(values: tuple[float, float]) -> tuple[float, float]:
    if not 0 < values[0] <= values[1]:
        raise ValueError(f"two positive numbers are expected, the smaller one first, not {list(values)}")
    return values


Share = Annotated[Real, Field(gt=0, lt=1)]
Probability = Annotated[Real, Field(ge=0, le=1)]
Positive = Annotated[Integer, Field(gt=0, le=10**9)]
Pixels = Annotated[Integer, Field(gt=0, le=10_000)]  # a side of an image
Batch = Annotated[Integer, Field(gt=0, le=100_000)]
Epochs = Annotated[Integer, Field(gt=0, le=100_000)]
Size = Annotated[Integer, Field(gt=0, le=100_000)]  # of a layer, or a number of boxes
PositiveFloat = Annotated[Real, Field(gt=0, le=1e9)]
NotNegative = Annotated[Real, Field(ge=0, le=1e9)]
Momentum = Annotated[Real, Field(ge=0, lt=1)]
Range = Annotated[tuple[Number, Number], AfterValidator(_ascending)]


# -- errors in one line -----------------------------------------------------------------------------------------------
EXPECTED = {  # pydantic's error types -> what the field takes; fixed-length tuples are described from their annotation
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number is expected"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number is expected"),
    "finite_number": "a finite number is expected",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false is expected"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list is expected"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a mapping is expected"),
    "string_type": "text is expected",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be less than or equal to {le}",
    "invalid_key": "keys must be text",
}
MAPPING = ("dict_type", "model_type", "model_attributes_type")


def error_line(
    error: ValidationError,
    model: type[BaseModel],
    prefix: str = "",
    hidden: Collection[str] = (),
    extra: Collection[str] = (),
) -> str:
    """The first mistake in `error` as one line, `model` being the schema that raised it.

    `prefix` is put before the key (`pretrain` gives `pretrain.epochs`). `hidden`: fields of `model` that users do not write;
    `extra`: keys that they write instead. An unknown key, choice or union member names the valid ones and the nearest.
    """
    errors = error.errors()
    unknown_keys = [entry for entry in errors if entry["type"] == "extra_forbidden"]
    first = (unknown_keys or errors)[0]  # a misspelled key is also missing under its right name: say the former
    kind, given, context = first["type"], first["input"], first.get("ctx", {})
    parts, annotations = _walk(model, first["loc"])
    wrong_key = parts[-1:] == ["[key]"]
    if wrong_key:
        parts, annotations = parts[:-1], annotations[:-1]
    if kind in ("missing", "too_long", "tuple_type") and (numbers := _numbers(annotations[-2:])):
        parts = parts[:-1] if parts[-1].isdigit() else parts
        return f"{_key(prefix, parts)}: {numbers}{_got(given)}"
    key = _key(prefix, parts)
    if kind == "extra_forbidden" or wrong_key:
        valid = _keys(annotations[-2])
        if annotations[-2] is model:
            valid = [name for name in (*valid, *extra) if name not in hidden]
        if wrong_key and not valid:
            return f"{key}: {EXPECTED['invalid_key']}"
        return f"unknown key {key}" + (f"; {nearest(parts[-1], valid)}" if valid else "")
    if kind == "union_tag_invalid":
        name, tag = context["discriminator"].strip("'"), context["tag"]
        return f"{key}.{name}: unknown {parts[-1]} {tag!r}; {nearest(tag, _quoted(context['expected_tags']))}"
    if kind == "literal_error" and (choices := _quoted(context["expected"])):
        return f"{key}: {_written(given)} is not a valid choice; {nearest(str(given), choices)}"
    if kind == "missing":
        choices = [str(choice) for choice in get_args(annotations[-1]) if get_origin(annotations[-1]) is Literal]
        return f"{key} is missing" + (f"; valid: {', '.join(choices)}" if choices else "")
    if kind == "value_error":
        return ": ".join(filter(None, (key, str(context["error"]))))
    fields = _keys(annotations[-1]) if kind in MAPPING else []
    which = f" of {', '.join(dict.fromkeys(fields))}" if fields and isinstance(given, bool | int | float | list) else ""
    text = EXPECTED[kind].format(**context) if kind in EXPECTED else first["msg"].replace("Input should be", "must be")
    return f"{key}: {text}{which}{_got(given)}"


def _key(prefix: str, parts: list[str]) -> str:
    return ".".join(filter(None, (prefix, *parts)))


def _got(given: Any) -> str:
    return "" if isinstance(given, dict | BaseModel) else f" (got {_written(given)})"


def _written(given: Any) -> str:
    """A value as it is written in YAML, cut to one short line."""
    words = {None: "null", True: "true, or yes", False: "false, or no"}
    if given is None or isinstance(given, bool):
        return words[given]
    try:
        text = repr(given)
    except ValueError:  # a number of more digits than Python writes
        text = "a number of thousands of digits"
    except RecursionError:
        text = "a list nested too deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _quoted(text: str) -> list[str]:
    """The words in `'a', 'b' or 'c'`, as pydantic lists choices."""
    return re.findall(r"'([^']*)'", text)


def _walk(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[list[str], list[Any]]:
    """The location as the user wrote it, and the annotation at each step, `model` first.

    Pydantic's location also names the chosen member of a union (method.jigclu.m); the user wrote method.m.
    """
    shown: list[str] = []
    annotations: list[Any] = [model]
    for part in loc:
        current = annotations[-1]
        members = get_args(current) if get_origin(current) in (Union, types.UnionType) else ()
        chosen = [member for member in members if part in (_tag(member), getattr(member, "__name__", None))]
        if chosen:
            annotations[-1] = chosen[0]
        else:
            shown.append(str(part))
            annotations.append(_below(current, part))
    return shown, annotations


def _members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, without Annotated; any other annotation is its own only member."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(inner for member in get_args(annotation) for inner in _members(member))
    return (annotation,)


def _tag(member: Any) -> Any:
    """The value of `name` by which pydantic chooses this member of a union; None if it has no such field."""
    fields = getattr(member, "model_fields", {})
    return fields["name"].default if "name" in fields else None


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _below(annotation: Any, part: int | str) -> Any:
    """The annotation of the field, value or item `part`; None if there is none."""
    for member in _members(annotation):
        origin, arguments = get_origin(member), get_args(member)
        if _is_model(member) and part in member.model_fields:
            return member.model_fields[part].annotation
        if origin is dict:
            return arguments[1]
        if origin in (tuple, list) and isinstance(part, int):
            return arguments[0] if ... in arguments else arguments[min(part, len(arguments) - 1)]
    return None


def _keys(annotation: Any) -> list[str]:
    """The keys that a mapping of this annotation takes; [] if any key is valid."""
    keys: list[str] = []
    for member in _members(annotation):
        if _is_model(member):
            keys += member.model_fields
        elif get_origin(member) is dict and get_origin(get_args(member)[0]) is Literal:
            keys += get_args(get_args(member)[0])
    return keys


def _numbers(annotations: list[Any]) -> str:
    """`two numbers are expected, as in [0.1, 2.0]` if one of the annotations is a tuple of fixed length, else ""."""
    words = {2: "two", 3: "three", 4: "four", 5: "five"}
    for member in (member for annotation in annotations for member in _members(annotation)):
        arguments = get_args(member)
        if get_origin(member) is tuple and ... not in arguments and len(arguments) in words:
            pair = [_members(argument) for argument in arguments] == [(float,), (float,)]
            example = ", as in [0.1, 2.0]" if pair else ""
            return f"{words[len(arguments)]} numbers are expected{example}"
    return ""
