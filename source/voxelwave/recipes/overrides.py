"""Overrides of nested settings from the command line: `--set a.b=value`."""

from __future__ import annotations

from typing import Any

import yaml

from voxelwave.errors import InputError


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set a key of nested sections, given as `a.b=value` with a YAML value; raises InputError for what does not fit."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set takes KEY=VALUE such as training.epochs=5, got '{override}'")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {key}: '{text}' is not a YAML value") from None
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
