"""moco-eval: what a run's features are worth, beside what costs no pretraining."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from moco_accel.console import console, progress_bar, user_errors
from moco_accel.recipe import Recipe
from moco_accel.recipe_text import RecipeError

if TYPE_CHECKING:
    from moco_accel.judgement import Judgement, LabelledTiles

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Folder of a run, or of one checkpoint.")],
    train_source: Annotated[str | None, typer.Option(help="Labelled shards to vote (default: the recipe's).")] = None,
    test_source: Annotated[str | None, typer.Option(help="Labelled shards to test (default: the recipe's).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, alone, to stdout.")] = False,
) -> None:
    """Judge a pretrained encoder by k nearest neighbours of its frozen features, in colour and on grey tiles.

    Beside it stand the same encoder at random initialisation and the tiles' mean colour. The figures go into
    RUN/summary.json, the nearest neighbours of some test tiles into RUN/neighbours.png.

    Example: moco-eval runs/demo --train-source data/demo/train --test-source data/demo/test
    """
    with user_errors():
        with console.status("loading the encoder"):
            import torch

            from moco_accel.judgement import PASSES, draw_judgement, judge, open_labelled
            from moco_accel.run_folder import load_encoder

            recipe, encoder, run_folder = load_encoder(run)
            recipe = _with_sources(recipe, train_source, test_source)
            tiles = open_labelled(recipe)
        with progress_bar() as progress:
            task = progress.add_task("features", total=PASSES * len(tiles))
            device = "cuda" if torch.cuda.is_available() else "cpu"
            judgement = judge(
                recipe,
                encoder,
                tiles,
                device,
                on_progress=lambda what, count: progress.update(task, advance=count, description=what),
            )
        figures = _figures(recipe, tiles, judgement)
        merge_summary(run_folder / "summary.json", figures)
        draw_judgement(run_folder / "neighbours.png", recipe, tiles, judgement)
        _print_table(recipe, tiles, judgement.accuracies)
        wrote = f"wrote {run_folder / 'summary.json'} and {run_folder / 'neighbours.png'}"
        console.print(escape(wrote), soft_wrap=True)
        if as_json:
            typer.echo(json.dumps(figures, indent=2))


def main() -> None:
    """Entry point of `moco-eval`. Exit codes: 0 done, 2 the user's mistake."""
    from moco_accel.console import run_command

    run_command(app)


def merge_summary(path: Path, figures: dict[str, Any]) -> None:
    """Put `figures` into a summary.json, keeping what else it holds; atomic. Raises RecipeError when it is no JSON."""
    from moco_accel.atomic_files import write_atomically

    try:
        before = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        raise RecipeError(f"{path} is not JSON; move it away and run moco-eval again") from None
    write_atomically(path, json.dumps({**before, **figures}, indent=2) + "\n")


def verdict(accuracies: dict[str, float]) -> str:
    """One sentence: which baselines pretraining beats, and which it does not."""
    contests = {
        "random initialisation in colour": ("knn_top1", "knn_top1_random_init"),
        "the mean colour": ("knn_top1", "knn_top1_mean_colour"),
        "random initialisation on grey tiles": ("knn_top1_grey", "knn_top1_grey_random_init"),
    }
    lost = [name for name, (ours, theirs) in contests.items() if accuracies[ours] <= accuracies[theirs]]
    if lost:
        return f"Pretraining did not beat {' or '.join(lost)}."
    return f"Pretraining beats {', '.join(list(contests)[:-1])} and {list(contests)[-1]}."


def _with_sources(recipe: Recipe, train_source: str | None, test_source: str | None) -> Recipe:
    given = {"train_source": train_source, "test_source": test_source}
    update = {name: source for name, source in given.items() if source is not None}
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=update)})


def _figures(recipe: Recipe, tiles: LabelledTiles, judgement: Judgement) -> dict[str, Any]:
    rounded = {name: round(share, 4) for name, share in judgement.accuracies.items()}
    counts = {"train_tiles": len(tiles.train), "test_tiles": len(tiles.test), "classes": len(tiles.names)}
    return {
        **rounded,
        **{f"knn_{name}": count for name, count in counts.items()},
        "knn_neighbours": recipe.evaluation.neighbours,
    }


def _print_table(recipe: Recipe, tiles: LabelledTiles, accuracies: dict[str, float]) -> None:
    from moco_accel.imagery.bluemarble import CLASSES, WEAKNESSES

    counts = f"{len(tiles.train):,} training and {len(tiles.test):,} test tiles, {len(tiles.names)} classes"
    table = Table(title=f"kNN-{recipe.evaluation.neighbours} accuracy", caption=counts)
    table.add_column("features")
    for column in ("in colour", "on grey tiles"):
        table.add_column(column, justify="right")
    rows = {f"{recipe.encoder.name}, pretrained": "", f"{recipe.encoder.name}, random": "_random_init"}
    for name, suffix in rows.items():
        colour, grey = accuracies[f"knn_top1{suffix}"], accuracies[f"knn_top1_grey{suffix}"]
        table.add_row(escape(name), f"{colour:.1%}", f"{grey:.1%}", style="" if suffix else "bold")
    table.add_row("mean colour", f"{accuracies['knn_top1_mean_colour']:.1%}", "–")
    console.print(table)
    sentence = verdict(accuracies)
    console.print(f"[{'green' if sentence.startswith('Pretraining beats') else 'yellow'}]{sentence}[/]", soft_wrap=True)
    if tiles.names == list(CLASSES):
        console.print(f"Mind the weaknesses of this data: {WEAKNESSES}.", style="dim", soft_wrap=True)


if __name__ == "__main__":
    main()
