"""Pages: HTML made out of the templates beside this, and how numbers are written in them."""

from __future__ import annotations

import base64
import hashlib
import math
from pathlib import Path
from typing import Any

from keras_vit._version import __version__

# What stands for a number that there is not.
UNKNOWN = "—"


def check_packages() -> None:
    """Raises an ImportError that names the extra, where a package that pages need is missing."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"The report needs matplotlib and jinja2: `pip install 'keras-vit[recipes]'` ({error})"
        ) from error


def render(template: str, **context: Any) -> bytes:
    """A page made out of a template of this package; all text in it is escaped.

    Drawings among the context, in `drawings`, are taken as SVG.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "decimals": decimals}
    script = (folder / "sort.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    context["drawings"] = {name: Markup(svg) for name, svg in context["drawings"].items()}
    page = environment.get_template(template).render(
        **context, version=__version__, script=Markup(script), script_hash=f"sha256-{digest}"
    )
    # File names on Linux may hold bytes that are no UTF-8.
    return page.encode("utf-8", "replace")


def percent(share: float | None, digits: int = 2) -> str:
    """A share as a percentage.

    >>> percent(0.98765), percent(None)
    ('98.77%', '—')
    """
    return UNKNOWN if share is None or math.isnan(share) else f"{share:.{digits}%}"


def number(count: int) -> str:
    """A count, its thousands apart.

    >>> number(50000)
    '50,000'
    """
    return f"{count:,}"


def decimals(value: float) -> str:
    """A number with four decimals.

    >>> decimals(0.25), decimals(math.inf), decimals(math.nan)
    ('0.2500', '∞', '—')
    """
    return f"{value:.4f}" if math.isfinite(value) else (UNKNOWN if math.isnan(value) else "∞")


def memory_text(count: int | None) -> str:
    """A number of bytes as people read it.

    >>> memory_text(3 * 2**30 // 2), memory_text(None)
    ('1.5 GiB', '—')
    """
    if count is None:
        return UNKNOWN
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def option_text(value: Any) -> str:
    """The value of an option on one line.

    >>> option_text([["head/.*", True], ["block_.*", False]]), option_text(None), option_text(0.03)
    ('head/.* True, block_.* False', 'none', '0.03')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, list | tuple):
        parts = (v if isinstance(v, list | tuple) else [v] for v in value)
        return ", ".join(" ".join(map(str, part)) for part in parts) or "none"
    return str(value)
