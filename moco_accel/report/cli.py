"""moco-report: what became of a run, or is becoming of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from moco_accel.common.console import console, user_errors
from moco_accel.common.errors import UserError

if TYPE_CHECKING:
    from moco_accel.checkpoints.run_log import Logged
    from moco_accel.training.console import Shown

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_EVALUATIONS_SHOWN = 12


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder; it may still be running.")],
    svg: Annotated[Path | None, typer.Option(help="Write what is shown as a picture, e.g. --svg report.svg")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, alone, to stdout.")] = False,
) -> None:
    """Look back on a run: where it stands, whether it is well, its evaluations beside their baselines, its curves.

    RUN/curves.png gets loss against chance, kNN against baselines, features, lr and momentum coefficient, tiles per
    second, memory against plan.

    Example: moco-report runs/demo
    """
    with user_errors():
        from moco_accel.checkpoints.run_log import read_logged
        from moco_accel.report.curves import draw_curves
        from moco_accel.training.console import panel

        logged = read_logged(run)
        shown = _shown(logged)
        printed: list[Any] = [panel(shown)]
        if logged.evaluations:
            printed.append(_evaluations(logged))
        for part in printed:
            console.print(part)
        recipe = logged.recipe
        title = f"{recipe.encoder.name}, global batch {recipe.batch.global_batch_size:,}: {run}"
        draw_curves(run / "curves.png", logged, title)
        wrote = [run / "curves.png"]
        if svg is not None:
            _save_svg(svg, printed)
            wrote.append(svg)
        console.print(escape(f"wrote {' and '.join(map(str, wrote))}"), soft_wrap=True)
        if as_json:
            typer.echo(json.dumps(_figures(logged, shown), indent=2))


def main() -> None:
    """Entry point of `moco-report`. Exit codes: 0 done, 2 the user's mistake."""
    from moco_accel.common.console import run_command

    run_command(app)


def _shown(logged: Logged) -> Shown:
    from moco_accel.training.console import Shown
    from moco_accel.training.run_health import verdict

    last = logged.rows[-1]
    examined: dict[str, Any] = {}
    for row in logged.evaluations:
        examined |= row
    return Shown(
        logged.recipe,
        str(logged.run),
        last["total_steps"],
        steps_done=last["step"] + 1,
        elapsed_seconds=last["seconds"],
        card_mib=last["card_memory_mib"],
        on_gpu=last["card_memory_mib"] is not None,
        row=last,
        examined=examined or None,
        verdict=verdict(logged.recipe, last, examined or None),
    )


def _evaluations(logged: Logged) -> Table:
    """The last ones; the best kNN stands out."""
    best = max((row.get("knn_top1", 0.0) for row in logged.evaluations), default=0.0)
    table = Table(title="evaluations", caption="kNN accuracy of frozen features; best in bold")
    for name in ("epoch", "kNN", "random init", "mean colour", "RankMe", "alignment", "uniformity"):
        table.add_column(name, justify="right")
    for row in logged.evaluations[-_EVALUATIONS_SHOWN:]:
        shares = [row.get(key) for key in ("knn_top1", "knn_top1_random_init", "knn_top1_mean_colour")]
        texts = ["–" if share is None else f"{share:.1%}" for share in shares]
        rank = f"{row['rank_me']:.0f} of {row['rank_of']}"
        style = "bold" if row.get("knn_top1") == best and best else ""
        others = (rank, f"{row['alignment']:.3f}", f"{row['uniformity']:.2f}")
        table.add_row(f"{row['epoch']:g}", *texts, *others, style=style)
    return table


def _save_svg(path: Path, printed: list[Any]) -> None:
    from io import StringIO

    from rich.console import Console

    if path.suffix != ".svg":
        raise UserError(f"--svg={str(path)!r} does not end in .svg; --svg {path.with_suffix('.svg')} works")
    drawn = Console(record=True, width=console.width, file=StringIO(), force_terminal=True)
    for part in printed:
        drawn.print(part)
    drawn.save_svg(str(path), title="moco-accel")


def _figures(logged: Logged, shown: Shown) -> dict[str, Any]:
    return {
        "run": str(logged.run),
        "steps_done": shown.steps_done,
        "total_steps": shown.total_steps,
        "chance_loss": logged.recipe.chance_loss,
        "last": logged.rows[-1],
        "evaluations": logged.evaluations,
        "health": {"level": shown.verdict.level, "text": shown.verdict.text},
    }


if __name__ == "__main__":
    main()
