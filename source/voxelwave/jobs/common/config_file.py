"""From a YAML file and overrides to a checked section: what every command does with its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from voxelwave.errors import InputError
from voxelwave.ops.texts import from_yaml, read_yaml
from voxelwave.registry import first_problem

Schema = TypeVar("Schema", bound=BaseModel)


def read_config(path: Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file of sections (None: an empty one) and apply overrides such as `training.learning_rate=1e-3`.

    Raises InputError, in one line, for a missing or malformed file, or an override that does not fit.
    """
    try:
        raw = {} if path is None else read_yaml(path)
    except OSError as error:
        raise InputError(f"cannot read config {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"cannot read config {path}: {error}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path} must hold sections (run, data, model, …), got {type(raw).__name__}")
    for override in overrides:
        apply_override(raw, override)
    return raw


def validated(schema: type[Schema], raw: dict[str, Any], origin: str) -> Schema:
    """Check plain values against `schema`; raises InputError, with the keys that are known where one is not."""
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{origin}: {first_problem(error)}{_known_keys(schema, error)}") from None


@contextmanager
def naming(origin: str) -> Iterator[None]:
    """Put the `origin` of a configuration before what is found to be wrong with it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None


def _known_keys(schema: type[BaseModel], error: ValidationError) -> str:
    """Name the keys that may stand where an unknown one stood."""
    problem = error.errors(include_url=False)[0]
    if problem["type"] != "extra_forbidden":
        return ""
    section: Any = schema
    for name in problem["loc"][:-1]:
        # A position in a list or a key of a mapping leaves its sections, which the annotation of the field names.
        field = section.model_fields.get(name)
        section = section if field is None else _section_of(field.annotation)
    return f"; known here: {', '.join(section.model_fields)}"


def _section_of(annotation: Any) -> Any:
    """Return the section that `annotation` is, or holds, as `list[Section]` does."""
    held = (annotation, *get_args(annotation))
    return next(one for one in held if isinstance(one, type) and issubclass(one, BaseModel))


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set a key of nested sections, given as `a.b=value` with a YAML value; raises InputError for what does not fit."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set takes KEY=VALUE such as training.epochs=5, got '{override}'")
    try:
        value = from_yaml(text)
    except ValueError as error:
        raise InputError(f"--set {key}: '{text[:100]}' is not a YAML value: {error}") from None
    set_key(raw, key, value)


def set_key(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a key of nested sections, given as `a.b`; raises InputError where one of them is a value."""
    *parents, last = key.split(".")
    node: Any = raw
    for parent in parents:
        node = _entry(node, parent, key)
    if isinstance(node, list):
        node[_position(node, last, key)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise InputError(f"cannot set {key}: '{'.'.join(parents)}' is a value, not a section")


def _entry(node: Any, name: str, key: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, name, key)]
    if not isinstance(node, dict):
        raise InputError(f"cannot set {key}: '{name}' lies under a value, not a section")
    if node.get(name) is None:
        node[name] = {}
    return node[name]


def _position(node: list[Any], name: str, key: str) -> int:
    if not name.isdecimal() or int(name) >= len(node):
        raise InputError(f"cannot set {key}: '{name}' must be a position 0…{len(node) - 1} of the list")
    return int(name)
