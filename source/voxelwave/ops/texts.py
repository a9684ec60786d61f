"""Texts that others may have written, parsed within bounds: what is too large or nested too deep is an error."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

MB = 2**20
DEEPEST = 64  # lists and mappings within each other; no file of the package has ten
MOST_NODES = 100_000  # of a configuration, an alias counted as what it stands for
LONGEST_NUMBER = 100  # characters
LONGEST_REASON = 200  # characters
_SEAL = re.compile(r". crc32 ([0-9a-f]{8}): .*\n?\Z")
_TOKENS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


def one_line(error: object) -> str:
    """Return what an error says in one line of at most `LONGEST_REASON` characters."""
    return " ".join(str(error).split())[:LONGEST_REASON]


def read_bytes(path: Path, *, most_mb: int) -> bytes:
    """Read a file; raises ValueError for a larger one."""
    with path.open("rb") as file:
        content = file.read(most_mb * MB + 1)
    if len(content) > most_mb * MB:
        raise ValueError(f"it is larger than {most_mb} MB")
    return content


def read_text(path: Path, *, most_mb: int) -> str:
    """Read a text in UTF-8, without the mark that some editors put first; raises ValueError for a larger one."""
    return read_bytes(path, most_mb=most_mb).decode("utf-8-sig")


def from_json(text: str) -> Any:
    """Parse JSON; raises ValueError, also for what is nested too deep, or cannot be written again."""
    # The number of signs that open something bounds the depth; few texts need a closer look.
    if text.count("[") + text.count("{") > DEEPEST and _depth(text) > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels")
    value = json.loads(text)
    if "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # half of a pair is no character
    return value


def to_json(value: Any) -> str:
    """Return lines of JSON; what is not finite, which JSON has no word for, becomes null.

    Bytes of a name that are no UTF-8 are written out.
    """
    return json.dumps(_writable(value), indent=2, ensure_ascii=False) + "\n"


def _writable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_writable(name): _writable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(inner) for inner in value]
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """Parse a file as `from_json` does; raises ValueError, and OSError where it cannot be read."""
    return from_json(read_text(path, most_mb=16))


def from_yaml(text: str) -> Any:
    """Parse YAML; raises ValueError in one line, also for what would be endless or nested too deep."""
    try:
        # A loader of PyYAML's safe kind, which makes plain values alone.
        return yaml.load(text, _BoundedLoader)
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from None


def read_yaml(path: Path) -> Any:
    """Parse a file as `from_yaml` does; raises ValueError, and OSError where it cannot be read.

    ValueError, too, where a text that was `sealed` is another one now.
    """
    text = read_text(path, most_mb=1).replace("\r\n", "\n")
    seal = _SEAL.search(text)
    if seal:
        text = text[: seal.start()]
        if seal[1] != _checksum(text):
            raise ValueError(
                "its checksum does not fit, it is damaged; if you changed it yourself, delete its last line"
            )
    return from_yaml(text)


def sealed(text: str) -> str:
    """Return a YAML text with its checksum as a comment at the end, which `read_yaml` compares."""
    return f"{text}# crc32 {_checksum(text)}: of all lines above; delete this one when you change them\n"


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _depth(text: str) -> int:
    depth = deepest = 0
    for token in _TOKENS.finditer(text):
        sign = token[0]
        depth += (sign in "[{") - (sign in "]}")
        deepest = max(deepest, depth)
    return deepest


class _BoundedLoader(yaml.SafeLoader):
    """Refuses aliases that stand for more than they say, deep nesting, and what a tag does not fit.

    Its errors are YAMLErrors, where those of PyYAML's constructors are of any kind.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._level = 0
        self._sizes: dict[yaml.Node, tuple[int, int]] = {}  # nodes and levels of each, with all that it stands for

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node whose size is known, or refuse it."""
        mark, alias = self.peek_event().start_mark, self.check_event(yaml.AliasEvent)  # type: ignore[no-untyped-call]
        self._level += 1
        if self._level > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {DEEPEST} levels", mark)
        node = super().compose_node(parent, index)
        self._level -= 1
        if node is None:
            return None
        if not alias:
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            if isinstance(node, yaml.MappingNode):
                parts = [part for pair in parts for part in pair]
            sizes = [self._sizes[part] for part in parts]
            self._sizes[node] = (1 + sum(size for size, _ in sizes), 1 + max((level for _, level in sizes), default=0))
        size, levels = self._sizes.get(node, (MOST_NODES + 1, 0))  # none while it is being composed: it holds itself
        if size > MOST_NODES or levels > DEEPEST:
            raise yaml.composer.ComposerError(None, None, "more values than a configuration can have", mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct what a node stands for."""
        short = node.value[:LONGEST_NUMBER] if isinstance(node, yaml.ScalarNode) else ""
        try:
            if short != node.value and short and node.tag != "tag:yaml.org,2002:str":
                raise ValueError(f"it has more than {LONGEST_NUMBER} characters")
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError):
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"'{short}' does not fit its type, {kind}", node.start_mark
            ) from None
