"""Print a report in parts, and save it as a picture or text."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console, RenderableType

from moco_accel.common.console import console

_WIDTH = 110  # columns of a saved report


class Page:
    """Print parts of a report and keep them for `save`."""

    def __init__(self) -> None:
        self._saved = Console(record=True, file=io.StringIO(), width=_WIDTH, highlight=False)

    def show(self, *parts: RenderableType) -> None:
        """Print parts on stderr."""
        for part in parts:
            console.print(part, soft_wrap=isinstance(part, str))
            self._saved.print(part)

    def save(self, path: Path) -> None:
        """Write all parts as SVG, HTML or text, by the ending of `path`."""
        if path.suffix == ".svg":
            self._saved.save_svg(str(path), title="moco-plan")
        elif path.suffix == ".html":
            self._saved.save_html(str(path))
        else:
            self._saved.save_text(str(path))
