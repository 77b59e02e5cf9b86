"""One HTML file that needs no other: style, script and numbers are written into it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from spatialflow.utils.files import atomic_write

_STYLES = ("web/theme.css", "report/assets/page.css")
_SCRIPTS = (
    "web/elements.js",
    "web/paint.js",
    *(f"report/assets/{n}.js" for n in ("common", "summary", "classes", "confusions", "images")),
)


def write_page(content: dict[str, Any], path: str | os.PathLike) -> None:
    """Write the page.

    Args:
        content: see :func:`spatialflow.tools.report.content.build_content`.
        path: path of the HTML file; its folder is created if needed.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(str(path), "wb") as f:
        f.write(render_page(content).encode("utf-8", errors="xmlcharrefreplace"))


def render_page(content: dict[str, Any]) -> str:
    """The page as text.

    Names in the content come from other people's files. Here they are escaped, the script puts
    them into the page as text only, and the page's policy lets no other script run and nothing be
    loaded from anywhere.
    """
    style, script = _joined(_STYLES), _joined(_SCRIPTS)
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
    )
    parts = {
        "policy": policy,
        "title": html.escape(f"{content['dataset']}: panoptic segmentation"),
        "style": style,
        "data": _json_for_html(content),
        "script": script,
    }
    template = _joined(["report/assets/page.html"])
    # In one pass, so that nothing is filled into what was filled in.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _joined(names: Sequence[str]) -> str:
    """The text of files of this package, one after the other."""
    tools = resources.files("spatialflow.tools")
    return "".join((tools / name).read_text(encoding="utf-8") for name in names)


def _json_for_html(content: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    """Source expression by which a content security policy admits this text and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
