"""moco-data: imagery into shards of tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from moco_accel.common.console import console, progress_bar, user_errors
from moco_accel.inspection import cli
from moco_accel.recipe.bands import parse_bands
from moco_accel.recipe.overrides import set_word

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
        from moco_accel.imagery.options import check_out

        check_out(out, overwrite)
        from moco_accel.evaluation.demo_classes import WEAKNESSES
        from moco_accel.imagery.demo import class_counts, load_demo, write_demo

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
        word = set_word("data.source", str(out / "pretrain"))
        console.print(f"In a recipe: [bold]{escape(word)}[/]", soft_wrap=True)


@app.command()
def build(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of imagery (searched throughout), or a file.")],
    out: Out,
    tile_size: Annotated[int, typer.Option(help="Side of a tile in pixels.")] = 224,
    stride: Annotated[int | None, typer.Option(help="Pixels from tile to tile. (default: --tile-size)")] = None,
    bands: Annotated[str | None, typer.Option(help="Bands to store, in this order: B4,B3,B2. (default: all)")] = None,
    band_names: Annotated[str | None, typer.Option(help="Names of bands that have none: red,green,blue,nir.")] = None,
    max_nodata: Annotated[float, typer.Option(help="Skip tiles with a larger share without data.")] = 0.1,
    nodata: Annotated[
        float | None, typer.Option(help="Number that marks no data: --nodata 0. (default: the file's)")
    ] = None,
    max_cloud: Annotated[float, typer.Option(help="Skip tiles with a larger share as white as clouds.")] = 0.5,
    labels_from_folders: Annotated[
        bool, typer.Option("--labels-from-folders", help="Label tiles with their folder directly under SRC.")
    ] = False,
    label_raster: Annotated[Path | None, typer.Option(help="GeoTIFF of class numbers to label tiles with.")] = None,
    class_names: Annotated[
        str | None, typer.Option(help="Of --label-raster: sea,land for 0 and 1, or 10=forest,80=water.")
    ] = None,
    min_majority: Annotated[
        float | None, typer.Option(help="Skip tiles of which no class covers this share. (default: 0.6)")
    ] = None,
    pair_with: Annotated[Path | None, typer.Option(metavar="SRC2", help="Imagery of another season.")] = None,
    max_shard_mb: Annotated[int, typer.Option(help="Largest size of a shard in MB.")] = 256,
    workers: Annotated[
        int | None, typer.Option(help="Processes; --workers 1 takes the least memory. (default: one for each core)")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Cut imagery into tiles.

    JPEG, PNG, GeoTIFF, JPEG 2000; uint8, uint16, int16 or float32.
    Images smaller than a tile are kept whole.
    Band files of one Sentinel-1, Sentinel-2 or Landsat scene are stacked.
    Killed? The same command goes on where it stopped.

    Without data are pixels of the file's nodata number, NaN or masked ones.
    In float32 they are stored as that number, or else as the lowest float32.

    White as clouds are, in 8 bits, red, green and blue above 230 and less
    than 20 apart; in Sentinel-2 and Landsat 8/9, reflectances above 0.35 and
    less than 0.1 apart. Snow is white, too. --max-cloud 1: no cloud test.

    With SRC2, column image_pair has the other season's tile: by place where
    both have a CRS, else by the same path below SRC and SRC2.

    Photos: moco-data build my_images data/tiles --stride 112

    Sentinel-2: moco-data build S2A_MSIL1C_….SAFE data/s2 --bands B4,B3,B2,B8

    Labels: moco-data build scenes data/labelled --label-raster worldcover.tif

    Seasons: moco-data build summer data/pairs --pair-with winter

    Example: moco-data build my_images data/tiles
    """
    with user_errors():
        from moco_accel.imagery.options import Options

        options = Options(
            tile_size=tile_size,
            stride=stride,
            bands=_names(bands, "--bands"),
            band_names=_names(band_names, "--band-names"),
            max_nodata=max_nodata,
            nodata=nodata,
            max_cloud=max_cloud,
            labels_from_folders=labels_from_folders,
            label_raster=label_raster,
            class_names=class_names,
            min_majority=min_majority,
            pair_with=pair_with,
            max_shard_mb=max_shard_mb,
        )
        console.print(f"looking for scenes in {escape(str(source))}", soft_wrap=True)
        from moco_accel.imagery.build import build_tiles
        from moco_accel.imagery.build_report import build_progress, print_built

        try:
            with build_progress() as hear:
                built = build_tiles(source, out, options, workers, overwrite, hear)
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on from the last whole shard")
            raise
        print_built(built, out, has_pairs=pair_with is not None)


def main() -> None:
    """Entry point of `moco-data`. Exit codes: 0 done, 2 the user's mistake."""
    from moco_accel.common.console import run_command

    run_command(app)


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


def _names(text: str | None, option: str) -> tuple[str, ...] | None:
    return None if text is None else tuple(parse_bands(text, option))


cli.register(app)  # inspect and preview register themselves: see look_cli.py

if __name__ == "__main__":
    main()
