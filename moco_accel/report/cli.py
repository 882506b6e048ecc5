"""`moco-report`: summarise a run."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moco_accel.common.console import console, run_command, user_errors
from moco_accel.common.errors import UserError

if TYPE_CHECKING:
    from moco_accel.checkpoints.run_log import RunLog
    from moco_accel.training.console import RunState

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_EVALUATIONS_SHOWN = 12


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, finished or not.")],
    svg: Annotated[Path | None, typer.Option(help="Also write the report as a picture, e.g. --svg report.svg")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON to stdout.")] = False,
) -> None:
    """Summarise a run: progress, health, evaluations beside their baselines, and curves.

    Writes RUN/curves.png: loss against chance, kNN against baselines, features, lr and momentum coefficient, tiles per
    second, memory against plan.

    Example: moco-report runs/demo
    """
    with user_errors():
        from moco_accel.checkpoints.run_log import read_run_log
        from moco_accel.report.curves import draw_curves
        from moco_accel.training.console import render_panel

        run_log = read_run_log(run)
        state = _run_state(run_log)
        parts: list[Any] = [render_panel(state)]
        if run_log.evaluations:
            parts.append(_evaluation_table(run_log))
        for part in parts:
            console.print(part)
        recipe = run_log.recipe
        title = f"{recipe.encoder.name}, global batch {recipe.batch.global_batch_size:,}: {run}"
        draw_curves(run / "curves.png", run_log, title)
        written = [run / "curves.png"]
        if svg is not None:
            _save_svg(svg, parts)
            written.append(svg)
        console.print(escape(f"wrote {' and '.join(map(str, written))}"), soft_wrap=True)
        command = None if _is_training_or_complete(state) else _resume_command(run_log)
        if command:
            console.print(escape(f"to continue the run:\n{command}"), soft_wrap=True)
        if as_json:
            typer.echo(json.dumps(_figures(run_log, state) | {"resume_command": command}, indent=2))


def main() -> None:
    """Run `moco-report`. Exit codes: 0 done, 2 user's mistake."""
    run_command(app)


def _run_state(run_log: RunLog) -> RunState:
    from moco_accel.training.console import RunState
    from moco_accel.training.run_health import assess_health, stopped

    last = run_log.rows[-1]
    evaluation: dict[str, Any] = {}
    for row in run_log.evaluations:
        evaluation |= row
    state = RunState(
        run_log.recipe,
        str(run_log.run),
        last["total_steps"],
        first_step=run_log.first_step,
        steps_done=last["step"] + 1,
        elapsed_seconds=run_log.elapsed_seconds,
        seconds_before=run_log.seconds_before,
        card_mib=last["card_memory_mib"],
        row=last,
        evaluation=evaluation or None,
        health=assess_health(run_log.recipe, last, evaluation or None),
    )
    if not _is_training_or_complete(state):
        state.health = stopped(state.health, state.steps_done, state.total_steps)
    return state


def _is_training_or_complete(state: RunState) -> bool:
    from moco_accel.checkpoints.run_folder import is_training

    return state.steps_done >= state.total_steps or is_training(Path(state.run))


def _resume_command(run_log: RunLog) -> str:
    from moco_accel.recipe.launch_command import LaunchOptions, launch_command

    launch = launch_command(run_log.recipe.hardware, str(run_log.run / "recipe.yaml"))
    return launch + LaunchOptions(output_dir=str(run_log.run), resume=True).as_text()


def _evaluation_table(run_log: RunLog) -> Table:
    """Return the last rows, with the best kNN in bold."""
    best = max((row.get("knn_top1", 0.0) for row in run_log.evaluations), default=0.0)
    table = Table(title="evaluations", caption="kNN accuracy of frozen features; best in bold")
    for name in ("epoch", "kNN", "random init", "mean colour", "RankMe", "alignment", "uniformity"):
        table.add_column(name, justify="right")
    for row in run_log.evaluations[-_EVALUATIONS_SHOWN:]:
        shares = [row.get(key) for key in ("knn_top1", "knn_top1_random_init", "knn_top1_mean_colour")]
        texts = ["–" if share is None else f"{share:.1%}" for share in shares]
        rank = f"{row['rank_me']:.0f} of {row['rank_of']}"
        style = "bold" if row.get("knn_top1") == best and best else ""
        others = (rank, f"{row['alignment']:.3f}", f"{row['uniformity']:.2f}")
        table.add_row(f"{row['epoch']:g}", *texts, *others, style=style)
    return table


def _save_svg(path: Path, parts: list[Any]) -> None:
    if path.suffix != ".svg":
        raise UserError(f"--svg={str(path)!r} does not end in .svg; --svg {path.with_suffix('.svg')} works")
    drawn = Console(record=True, width=console.width, file=StringIO(), force_terminal=True)
    for part in parts:
        drawn.print(part)
    drawn.save_svg(str(path), title="moco-accel")


def _figures(run_log: RunLog, state: RunState) -> dict[str, Any]:
    return {
        "run": str(run_log.run),
        "steps_done": state.steps_done,
        "total_steps": state.total_steps,
        "chance_loss": run_log.recipe.chance_loss,
        "last": run_log.rows[-1],
        "evaluations": run_log.evaluations,
        "health": {"level": state.health.level, "text": state.health.text},
    }


if __name__ == "__main__":
    main()
