"""moco-eval: evaluate the frozen features of a run's encoder beside baselines that need no pretraining."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from moco_accel.common.console import console, progress_bar, run_command, user_errors
from moco_accel.common.errors import UserError
from moco_accel.evaluation.split_rule import SplitRule, parse_split
from moco_accel.recipe.schema import Recipe

if TYPE_CHECKING:
    from moco_accel.evaluation.baselines import BaselineComparison

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_DEFAULT_SEEDS = 3


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Folder of a run or of one checkpoint.")],
    train_source: Annotated[str | None, typer.Option(help="Labelled training tiles (default: the recipe's).")] = None,
    test_source: Annotated[str | None, typer.Option(help="Labelled test tiles (default: the recipe's).")] = None,
    data: Annotated[str | None, typer.Option(help="Labelled tiles to split into training and test tiles.")] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="How to split --data: column:NAME, folder, block:DEGREES, block:ROWSxCOLS or random; --split block:5"
        ),
    ] = None,
    test_share: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Share of test tiles, for splits by blocks or at random.")
    ] = 0.2,
    label_column: Annotated[str | None, typer.Option(help="Column of classes (default: the recipe's).")] = None,
    neighbours: Annotated[
        int | None,
        typer.Option(min=1, max=1 << 24, help="Number of neighbours in kNN (default: the recipe's); --neighbours 20"),
    ] = None,
    probe: Annotated[
        Literal["logistic", "sgd", "none"],
        typer.Option(help="Linear probe: logistic regression, the paper's schedule (sgd), or none."),
    ] = "logistic",
    seeds: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Seeds of splits and probes (default: 3, or 1 if nothing is random)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON to stdout.")] = False,
) -> None:
    """Evaluate a pretrained encoder on frozen features, by k nearest neighbours and a linear probe.

    The baselines are the same encoder at random initialisation and the mean colour of each tile. Results are written to
    RUN/summary.json, neighbours.png, confusion.png and map.png. docs/evaluation.md explains them.

    Example: moco-eval runs/demo --train-source data/demo/train --test-source data/demo/test
    """
    with user_errors():
        rule = _check_options(data, split, train_source, test_source)
        with console.status("loading the encoder"):
            import torch

            from moco_accel.checkpoints.run_folder import load_encoder
            from moco_accel.evaluation import baselines, report
            from moco_accel.evaluation.pictures import draw_pictures
            from moco_accel.evaluation.split_sources import open_and_split

            recipe, encoder, run_folder = load_encoder(run)
            options: dict[str, Any] = {"train_source": train_source, "test_source": test_source}
            options |= {"label_column": label_column, "neighbours": neighbours}
            given = {name: value for name, value in options.items() if value is not None}
            recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=given)})
            seeds = _choose_seeds(seeds, probe != "none" or (rule is not None and rule.uses_seed))
            pool, splits = open_and_split(recipe, data, rule, test_share, seeds, _print_line)
        _print_line(report.describe_preprocessing(recipe, pool.bands))
        with progress_bar() as progress:
            task = progress.add_task("features", total=baselines.PASSES * len(pool))
            extracted = baselines.extract_all_features(
                recipe,
                encoder,
                pool,
                "cuda" if torch.cuda.is_available() else "cpu",
                lambda what, count: progress.update(task, advance=count, description=what),
            )
            num_probes = 0 if probe == "none" else baselines.PROBES_PER_SEED * seeds
            probes = progress.add_task("probes", total=num_probes)
            comparison = baselines.compare_with_baselines(
                recipe, extracted, pool, splits, probe, seeds, lambda: progress.advance(probes)
            )
        settings = {
            "data": data or [recipe.evaluation.train_source, recipe.evaluation.test_source],
            "split": rule.text if rule else "given",
            "seeds": seeds,
            "probe": probe,
        }
        figures = report.summary_figures(recipe, comparison, settings)
        report.update_summary(run_folder / "summary.json", figures)
        with console.status("drawing"):
            pictures = draw_pictures(run_folder, recipe, comparison)
        _print_results(recipe, comparison, settings)
        _print_line(f"wrote {run_folder / 'summary.json'}, {', '.join(pictures)}")
        if as_json:
            typer.echo(json.dumps(figures | report.json_details(recipe, comparison), indent=2))


def main() -> None:
    """Run `moco-eval` and exit: 0 on success, 2 on a user error."""
    run_command(app)


def _check_options(
    data: str | None, split: str | None, train_source: str | None, test_source: str | None
) -> SplitRule | None:
    """Parse `--split`, and check the options that name tiles."""
    rule = None if split is None else parse_split(split)
    if rule is not None and data is None:
        raise UserError(f"--split={split!r} needs --data; --data data/labelled works")
    if rule is None and data is not None:
        raise UserError(f"--data={data!r} needs --split, to separate training and test tiles; --split random works")
    for option, source in (("--train-source", train_source), ("--test-source", test_source)):
        if data is not None and source is not None:
            raise UserError(f"{option}={source!r} and --data={data!r} exclude each other; one of the two works")
    return rule


def _choose_seeds(seeds: int | None, is_random: bool) -> int:
    if is_random:
        return seeds or _DEFAULT_SEEDS
    if seeds is not None and seeds > 1:
        _print_line(f"--seeds={seeds} has no effect: neither the split nor kNN is random; 1 is used")
    return 1


def _print_line(line: str, style: str | None = None) -> None:
    console.print(escape(line), style=style, soft_wrap=True)


def _print_results(recipe: Recipe, comparison: BaselineComparison, settings: dict[str, Any]) -> None:
    from moco_accel.evaluation.demo_classes import CLASSES, LIMITATIONS
    from moco_accel.evaluation.metrics import accuracies_by_seed
    from moco_accel.evaluation.report import results_table, verdict, warnings

    seeds = settings["seeds"]
    averaged = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    console.print(results_table(recipe, comparison, f"split: {settings['split']}; {averaged}"))
    sentence = verdict(accuracies_by_seed(comparison.scores))
    _print_line(sentence, "green" if sentence.startswith("Pretraining beats") else "yellow")
    for line in warnings(comparison, settings["split"]):
        _print_line(line, "yellow")
    if comparison.pool.names == list(CLASSES):
        _print_line(f"Limitations of this data: {LIMITATIONS}.", "dim")


if __name__ == "__main__":
    main()
