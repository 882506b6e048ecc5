"""moco-eval: what a run's features are worth, beside what costs no pretraining."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from moco_accel.common.console import console, progress_bar, user_errors
from moco_accel.common.errors import UserError
from moco_accel.recipe.schema import Recipe

if TYPE_CHECKING:
    from moco_accel.evaluation.baselines import Judgement
    from moco_accel.evaluation.labelled_pool import Pool
    from moco_accel.evaluation.split_rule import SplitRule
    from moco_accel.evaluation.splits import Split

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
DEFAULT_SEEDS = 3


class ProbeName(str, Enum):
    logistic = "logistic"
    sgd = "sgd"
    none = "none"


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Folder of a run, or of one checkpoint.")],
    train_source: Annotated[
        str | None, typer.Option(help="Labelled shards to learn from (default: the recipe's).")
    ] = None,
    test_source: Annotated[str | None, typer.Option(help="Labelled shards to test (default: the recipe's).")] = None,
    data: Annotated[str | None, typer.Option(help="Labelled shards of both sides, told apart by --split.")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Of --data: column:NAME, folder, block:DEGREES, block:ROWSxCOLS or random; --split block:5"),
    ] = None,
    test_share: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Share of tiles to test, of blocks or at random.")
    ] = 0.2,
    label_column: Annotated[str | None, typer.Option(help="Column of classes (default: the recipe's).")] = None,
    neighbours: Annotated[
        int | None, typer.Option(min=1, max=1 << 24, help="That vote in kNN (default: the recipe's); --neighbours 20")
    ] = None,
    probe: Annotated[
        ProbeName, typer.Option(help="Linear classifier: logistic regression, the paper's schedule (sgd), or none.")
    ] = ProbeName.logistic,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=100, help="Draws of split and probe (default: 3, or 1 without any).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, alone, to stdout.")] = False,
) -> None:
    """Judge a pretrained encoder by its frozen features: k nearest neighbours and a linear probe.

    Beside it stand the same encoder at random initialisation and the tiles' mean colour. The figures go into
    RUN/summary.json; neighbours.png, confusion.png and map.png lie beside it. docs/evaluation.md says what they mean.

    Example: moco-eval runs/demo --train-source data/demo/train --test-source data/demo/test
    """
    with user_errors():
        rule = _check_options(data, split, train_source, test_source)
        with console.status("loading the encoder"):
            import torch

            from moco_accel.checkpoints.run_folder import load_encoder
            from moco_accel.evaluation import baselines as judging
            from moco_accel.evaluation.report import details, figures, preprocessing

            recipe, encoder, run_folder = load_encoder(run)
            changes = {"train_source": train_source, "test_source": test_source}
            recipe = _with_options(recipe, changes | {"label_column": label_column, "neighbours": neighbours})
            seeds = _how_many_seeds(seeds, probe is not ProbeName.none or (rule is not None and rule.is_drawn))
            pool, splits = _open(recipe, data, rule, test_share, seeds)
        console.print(escape(preprocessing(recipe, pool.bands)), soft_wrap=True)
        with progress_bar() as progress:
            task = progress.add_task("features", total=judging.PASSES * len(pool))
            device = "cuda" if torch.cuda.is_available() else "cpu"
            extracted = judging.extract_all(
                recipe,
                encoder,
                pool,
                device,
                lambda what, count: progress.update(task, advance=count, description=what),
            )
            probes = progress.add_task("probes", total=0 if probe is ProbeName.none else 3 * seeds)
            judgement = judging.judge_splits(
                recipe, extracted, pool, splits, probe.value, seeds, lambda: progress.advance(probes)
            )
        told = {
            "data": data or [recipe.evaluation.train_source, recipe.evaluation.test_source],
            "split": rule.text if rule else "given",
            "seeds": seeds,
            "probe": probe.value,
        }
        found = figures(recipe, judgement, told)
        merge_summary(run_folder / "summary.json", found)
        with console.status("drawing"):
            _draw(run_folder, recipe, judgement)
        _say(recipe, judgement, told)
        pictures = ", ".join(("neighbours.png", "confusion.png", "map.png"))
        console.print(escape(f"wrote {run_folder / 'summary.json'}, {pictures}"), soft_wrap=True)
        if as_json:
            typer.echo(json.dumps(found | details(recipe, judgement), indent=2))


def main() -> None:
    """Entry point of `moco-eval`. Exit codes: 0 done, 2 the user's mistake."""
    from moco_accel.common.console import run_command

    run_command(app)


def merge_summary(path: Path, figures: dict[str, Any]) -> None:
    """Put `figures` into a summary.json, keeping what else it holds; atomic. Raises UserError when it is no JSON."""
    from moco_accel.common.atomic_files import write_atomically
    from moco_accel.evaluation.report import stale

    try:
        before = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        raise UserError(f"{path} is not JSON; move it away and run moco-eval again") from None
    kept = {name: value for name, value in before.items() if not stale(name)}
    write_atomically(path, json.dumps({**kept, **figures}, indent=2) + "\n")


def _check_options(
    data: str | None, split: str | None, train_source: str | None, test_source: str | None
) -> SplitRule | None:
    """What `--split` says. Raises UserError when options are wrong, or do not go together."""
    from moco_accel.evaluation.split_rule import parse_split

    rule = None if split is None else parse_split(split)
    if rule is not None and data is None:
        raise UserError(f"--split={split!r} splits --data, which is absent; --data data/labelled works")
    if rule is None and data is not None:
        raise UserError(f"--data={data!r} needs --split, to tell training from test tiles; --split block:5 works")
    for option, source in (("--train-source", train_source), ("--test-source", test_source)):
        if data is not None and source is not None:
            raise UserError(f"{option}={source!r} and --data={data!r} both name tiles; one of the two works")
    return rule


def _how_many_seeds(asked: int | None, is_drawn: bool) -> int:
    if is_drawn:
        return asked or DEFAULT_SEEDS
    if asked is not None and asked > 1:
        console.print(f"--seeds={asked}: nothing is drawn here, one seed says it all", soft_wrap=True)
    return 1


def _with_options(recipe: Recipe, given: dict[str, Any]) -> Recipe:
    update = {name: value for name, value in given.items() if value is not None}
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=update)})


def _open(
    recipe: Recipe, data: str | None, rule: SplitRule | None, share: float, seeds: int
) -> tuple[Pool, list[Split]]:
    from moco_accel.evaluation.split_sources import drawn_splits, given_split

    if data is None or rule is None:
        pool, split = given_split(recipe)
        return pool, [split]
    return drawn_splits(recipe, data, rule, share, seeds, lambda line: console.print(escape(line), soft_wrap=True))


def _draw(run_folder: Path, recipe: Recipe, judgement: Judgement) -> None:
    from moco_accel.evaluation.baselines import draw_judgement
    from moco_accel.evaluation.pictures import draw_confusion, draw_map

    draw_judgement(run_folder / "neighbours.png", recipe, judgement)
    probe, how = ("linear", "linear probe") if ("linear", "") in judgement.scores else ("knn", "kNN")
    of_first = judgement.scores[probe, ""][0]
    title = f"{recipe.encoder.name}, {how}: accuracy {of_first.top1:.1%}, balanced {of_first.balanced:.1%}"
    draw_confusion(run_folder / "confusion.png", of_first.confusion, judgement.pool.names, title)
    panels = [("pretrained", judgement.pretrained[1]), ("random initialisation", judgement.random_init[1])]
    labels = judgement.pool.labels[judgement.splits[0].test]
    draw_map(run_folder / "map.png", panels, labels, judgement.pool.names)


def _say(recipe: Recipe, judgement: Judgement, told: dict[str, Any]) -> None:
    from moco_accel.evaluation.demo_classes import CLASSES, WEAKNESSES
    from moco_accel.evaluation.report import accuracies_by_seed, table, verdict

    plural = f"mean ± standard deviation of {told['seeds']} seeds" if told["seeds"] > 1 else "one seed"
    console.print(table(recipe, judgement, f"split: {told['split']}; {plural}"))
    sentence = verdict(judgement.accuracies, accuracies_by_seed(judgement))
    console.print(f"[{'green' if sentence.startswith('Pretraining beats') else 'yellow'}]{sentence}[/]", soft_wrap=True)
    for line in _warnings(judgement, told):
        console.print(f"[yellow]{escape(line)}[/]", soft_wrap=True)
    if judgement.pool.names == list(CLASSES):
        console.print(f"Mind the weaknesses of this data: {WEAKNESSES}.", style="dim", soft_wrap=True)


def _warnings(judgement: Judgement, told: dict[str, Any]) -> list[str]:
    from moco_accel.evaluation.linear_probe import MOST_ITERATIONS

    lines, copies, split = [], judgement.copies, judgement.splits[0]
    if told["split"] == "random":
        lines.append(
            "A random split puts neighbouring tiles on both sides: figures are too high; --split block:5 is fairer."
        )
    if copies.exact or copies.near:
        lines.append(
            f"{copies.exact + copies.near:,} of {copies.tested:,} test tiles ({copies.share:.1%}) are in training too: "
            f"{copies.exact:,} with the same pixels, {copies.near:,} nearly; this flatters kNN most."
        )
    if split.left_out:
        lines.append(f"{split.left_out:,} tiles are on neither side of the split.")
    if judgement.cut_off:
        lines.append(f"{judgement.cut_off} linear probes were cut off at {MOST_ITERATIONS:,} iterations, unconverged.")
    return lines


if __name__ == "__main__":
    main()
