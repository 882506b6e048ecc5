"""moco-data: imagery into shards of tiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from moco_accel.console import console, progress_bar, user_errors
from moco_accel.recipe_text import RecipeError

if TYPE_CHECKING:
    from moco_accel.imagery.build import Built

_MAX_LISTED = 10
app = typer.Typer(
    help="Imagery into shards of tiles to pretrain on.\n\nExample: moco-data demo data/demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; empty or not there yet.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the shards that OUT holds.")]


@app.command()
def demo(out: Out, overwrite: Overwrite = False) -> None:
    """Write real satellite tiles with no download: NASA's Blue Marble, labelled by MODIS land cover.

    OUT/pretrain holds 32-pixel tiles without labels, OUT/train and OUT/test labelled ones from other places.

    Example: moco-data demo data/demo
    """
    with user_errors():
        _check_out(out, overwrite)
        from moco_accel.imagery.bluemarble import WEAKNESSES, class_counts, load_demo, write_demo

        with console.status("choosing tiles"):
            chosen = load_demo()
        with progress_bar() as progress:
            task = progress.add_task("tiles", total=sum(map(len, chosen.splits.values())))
            write_demo(
                chosen, out, overwrite, on_tile=lambda split: progress.update(task, advance=1, description=split)
            )
        _print_demo({split: class_counts(windows) for split, windows in chosen.splits.items()})
        console.print(
            f"Blue Marble: NASA Earth Observatory; labels: MODIS land cover 2019, NASA LP DAAC ({WEAKNESSES})."
        )
        console.print(f"In a recipe: [bold]data.source={escape(str(out / 'pretrain'))}[/]", soft_wrap=True)


@app.command()
def build(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Folder of images (searched throughout), or one scene.")
    ],
    out: Out,
    tile_size: Annotated[int, typer.Option(help="Side of a tile in pixels; smaller images are kept whole.")] = 224,
    stride: Annotated[
        int | None, typer.Option(help="Pixels from one tile to the next. (default: the tile size)")
    ] = None,
    labels_from_folders: Annotated[
        bool, typer.Option("--labels-from-folders", help="Label each tile with its folder directly under SRC.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Cut 8-bit RGB or grey JPEG, PNG and TIFF images into tiles.

    What no window fits into at the right and lower edge of an image is left out.

    Example: moco-data build my_images data/tiles --tile-size 224 --stride 112
    """
    with user_errors():
        _check_out(out, overwrite)
        from moco_accel.imagery.build import build_tiles, find_images

        num_images = len(find_images(source))
        with progress_bar() as progress:
            task = progress.add_task("images", total=num_images)
            built = build_tiles(
                source,
                out,
                tile_size,
                stride,
                labels_from_folders,
                overwrite,
                on_progress=lambda images, tiles: progress.advance(task, images),
            )
            progress.update(task, completed=num_images)
        _print_built(built, out)


def main() -> None:
    """Entry point of `moco-data`. Exit codes: 0 done, 2 the user's mistake."""
    from moco_accel.console import run_command

    run_command(app)


def _check_out(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise RecipeError(f"OUT={str(out)!r} is a file; a folder works, e.g. {out.with_suffix('')}_tiles")
    if not overwrite and out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise RecipeError(f"OUT={str(out)!r} is not empty; choose another folder, or pass --overwrite")


def _print_demo(counts: dict[str, dict[str, int]]) -> None:
    table = Table(title="tiles", caption="32 × 32 pixels of about 7 km")
    table.add_column("class")
    for split in counts:
        table.add_column(split, justify="right")
    names = list(dict.fromkeys(name for per_class in counts.values() for name in per_class))
    for name in names:
        table.add_row(name, *(f"{per_class[name]:,}" if name in per_class else "–" for per_class in counts.values()))
    table.add_section()
    table.add_row("[bold]all", *(f"[bold]{sum(per_class.values()):,}" for per_class in counts.values()))
    console.print(table)


def _print_built(built: Built, out: Path) -> None:
    if built.tiles_per_class:
        table = Table(title="tiles per class")
        table.add_column("class")
        table.add_column("tiles", justify="right")
        for name, count in sorted(built.tiles_per_class.items()):
            table.add_row(escape(name), f"{count:,}")
        console.print(table)
    kind = "grey, encoder.bands=1" if built.mode == "L" else "RGB, encoder.bands=3"
    console.print(f"{built.num_tiles:,} tiles ({kind}) of {built.num_images:,} images in {escape(str(out))}")
    if built.left_out:
        console.print(f"[yellow]{len(built.left_out):,} images were left out:[/]")
        for path, reason in built.left_out[:_MAX_LISTED]:
            console.print(f"  {escape(str(path))}: {escape(reason)}", soft_wrap=True)
        if len(built.left_out) > _MAX_LISTED:
            console.print(f"  … and {len(built.left_out) - _MAX_LISTED:,} more")
    console.print(f"In a recipe: [bold]data.source={escape(str(out))}[/]", soft_wrap=True)


if __name__ == "__main__":
    main()
