"""Pages of HTML that need nothing but what lies beside them, from the templates of the package."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **facts: Any) -> str:
    """Return the page that `template` makes of `facts`; its path is that from the package.

    Whatever a fact holds stays text. Bytes of file names that are not UTF-8 are written out.
    """
    return _environment().get_template(template).render(facts)


@cache
def _environment() -> Environment:
    # Importing Jinja2 takes a tenth of a second.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("voxelwave", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_writable,
    )
    environment.filters["path"] = relative_url
    return environment


def relative_url(path: str) -> str:
    """Return the URL of a file below the page: from ./ on, a path cannot be taken for a scheme or a host."""
    return "./" + quote(path.encode("utf-8", "surrogateescape"))


def _writable(value: Any) -> Any:
    # Markup knows how to escape what it is made of, and stays as it is.
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if type(value) is str else value
