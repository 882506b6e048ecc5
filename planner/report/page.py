"""Print a report in parts, and save it as a picture or text."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console, RenderableType

from moco_accel.common.console import console
from moco_accel.common.errors import UserError

_WIDTH = 110  # columns of a saved report
_ENDINGS = (".svg", ".html", ".txt")


class Page:
    """Print parts of a report and keep them for `save`."""

    def __init__(self) -> None:
        self._parts: list[RenderableType] = []

    def show(self, *parts: RenderableType) -> None:
        """Print parts on stderr."""
        self._parts += parts
        for part in parts:
            console.print(part, soft_wrap=isinstance(part, str))

    def save(self, path: Path) -> None:
        """Write all parts as SVG, HTML or text, by the ending of `path`."""
        recording = Console(record=True, file=io.StringIO(), width=_WIDTH, highlight=False)
        for part in self._parts:
            recording.print(part)
        if path.suffix == ".svg":
            recording.save_svg(str(path), title="moco-plan")
        elif path.suffix == ".html":
            recording.save_html(str(path))
        else:
            recording.save_text(str(path))


def check_report_path(path: Path | None) -> None:
    """Check that `Page.save` can write `path`, and create its folder.

    Raises:
        UserError: If the ending is unknown or the file cannot be written.
    """
    if path is None:
        return
    if path.suffix not in _ENDINGS:
        raise UserError(f"--save={path} must end in {', '.join(_ENDINGS)}; --save plan.svg works")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UserError(f"--save={path} cannot be written: {error}; --save plan.svg works") from None
