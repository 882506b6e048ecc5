"""The command `moco-data`: build tiles, inspect and preview them, write the demo tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from moco_accel.common.console import console, progress_bar, run_command, user_errors
from moco_accel.inspection import cli as inspection_cli
from moco_accel.recipe.overrides import override_argument

app = typer.Typer(
    help="Turn imagery into shards of tiles for pretraining.\n\nExample: moco-data demo data/demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, new or empty.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing shards in OUT.")]


@app.command()
def demo(out: Out, overwrite: Overwrite = False) -> None:
    """Write demo tiles: NASA's Blue Marble, labelled by MODIS land cover. Nothing is downloaded.

    OUT/pretrain holds unlabelled tiles of 32 pixels. OUT/train and OUT/test
    hold labelled tiles of other places.

    Example: moco-data demo data/demo
    """
    with user_errors():
        from moco_accel.imagery.options import check_output_folder

        check_output_folder(out, overwrite)
        from moco_accel.evaluation.demo_classes import LIMITATIONS
        from moco_accel.imagery.demo import class_counts, select_demo_tiles, write_demo

        with console.status("selecting tiles"):
            tiles = select_demo_tiles()
        with progress_bar() as progress:
            task = progress.add_task("tiles", total=sum(map(len, tiles.splits.values())))
            write_demo(tiles, out, overwrite, on_tile=lambda split: progress.update(task, advance=1, description=split))
        _print_demo({split: class_counts(windows) for split, windows in tiles.splits.items()})
        console.print(
            f"Blue Marble: NASA Earth Observatory; labels: MODIS land cover 2019, NASA LP DAAC ({LIMITATIONS})."
        )
        argument = override_argument("data.source", str(out / "pretrain"))
        console.print(f"In a recipe: [bold]{escape(argument)}[/]", soft_wrap=True)


@app.command()
def build(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of imagery (with subfolders), or one file.")],
    out: Out,
    tile_size: Annotated[int, typer.Option(help="Side of a tile in pixels.")] = 224,
    stride: Annotated[int | None, typer.Option(help="Pixels from tile to tile. (default: --tile-size)")] = None,
    bands: Annotated[str | None, typer.Option(help="Bands to store, in this order: B4,B3,B2. (default: all)")] = None,
    band_names: Annotated[str | None, typer.Option(help="Names of unnamed bands: red,green,blue,nir.")] = None,
    max_nodata: Annotated[float, typer.Option(help="Skip tiles with a larger share of pixels without data.")] = 0.1,
    nodata: Annotated[
        float | None, typer.Option(help="Number that marks no data: --nodata 0. (default: that of the file)")
    ] = None,
    max_cloud: Annotated[float, typer.Option(help="Skip tiles with a larger share of pixels white like clouds.")] = 0.5,
    labels_from_folders: Annotated[
        bool, typer.Option("--labels-from-folders", help="Label tiles with their folder directly under SRC.")
    ] = False,
    label_raster: Annotated[Path | None, typer.Option(help="GeoTIFF of class numbers that labels the tiles.")] = None,
    class_names: Annotated[
        str | None, typer.Option(help="Classes of --label-raster: sea,land for 0 and 1, or 10=forest,80=water.")
    ] = None,
    min_majority: Annotated[
        float | None, typer.Option(help="Skip tiles in which no class covers this share. (default: 0.6)")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB", help="Take only files of these names, or paths below SRC: --only 'images/**/*'; repeatable."
        ),
    ] = None,
    overlap: Annotated[
        bool, typer.Option("--overlap", help="Let tiles overlap as little as needed to reach every edge.")
    ] = False,
    pair_with: Annotated[Path | None, typer.Option(metavar="SRC2", help="Imagery of another season.")] = None,
    max_shard_mb: Annotated[int, typer.Option(help="Maximum size of a shard in MB.")] = 256,
    workers: Annotated[
        int | None,
        typer.Option(help="Number of processes; --workers 1 needs the least memory. (default: one for each core)"),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Cut imagery into tiles.

    Reads JPEG, PNG, GeoTIFF and JPEG 2000. Tiles are uint8, uint16, int16 or
    float32; wider types are cast, and windows that do not fit are skipped.
    Masks, label maps and quick-looks beside imagery are left out; if kinds of
    imagery compete, or splits such as train and test, an error gives the option
    that selects each.
    Images smaller than a tile are kept whole.
    Band files of one Sentinel-1, Sentinel-2 or Landsat scene are stacked.
    After an interruption, the same command resumes the build.

    Pixels without data are masked, NaN, or equal to the file's nodata number.
    In float32 they are stored as that number, or else as the lowest float32.

    The cloud test counts white pixels. In 8 bits, red, green and blue are above
    230 and less than 20 apart; in Sentinel-2 and Landsat 8/9, reflectances are
    above 0.35 and less than 0.1 apart. Snow is white, too. --max-cloud 1
    disables the test.

    With SRC2, column image_pair has the other season's tile. Scenes pair by
    place if both have a CRS, otherwise by the same path below SRC and SRC2.

    Photos: moco-data build my_images data/tiles --stride 112

    Sentinel-2: moco-data build S2A_MSIL1C_….SAFE data/s2 --bands B4,B3,B2,B8

    Labels: moco-data build scenes data/labelled --label-raster worldcover.tif

    Seasons: moco-data build summer data/pairs --pair-with winter

    Example: moco-data build my_images data/tiles
    """
    with user_errors():
        from moco_accel.imagery.options import BuildOptions

        options = BuildOptions(
            tile_size=tile_size,
            stride=stride,
            bands=inspection_cli.parse_names("--bands", bands),
            band_names=inspection_cli.parse_names("--band-names", band_names),
            max_nodata=max_nodata,
            nodata=nodata,
            max_cloud=max_cloud,
            labels_from_folders=labels_from_folders,
            label_raster=label_raster,
            class_names=class_names,
            min_majority=min_majority,
            pair_with=pair_with,
            max_shard_mb=max_shard_mb,
            only=only,
            overlap=overlap,
        )
        console.print(f"searching for scenes in {escape(str(source))}", soft_wrap=True)
        from moco_accel.imagery.build import build_tiles
        from moco_accel.imagery.build_report import build_progress, print_build_result

        try:
            with build_progress() as report_progress:
                result = build_tiles(source, out, options, workers, overwrite, report_progress)
        except KeyboardInterrupt:
            console.print("stopped; the same command resumes from the last complete shard")
            raise
        print_build_result(result, out, has_pairs=pair_with is not None)


def main() -> None:
    """Run `moco-data`. Exit code 0: success; 2: user error."""
    run_command(app)


def _print_demo(counts: dict[str, dict[str, int]]) -> None:
    splits = (Column(split, justify="right") for split in counts)
    table = Table("class", *splits, title="tiles", caption="32 × 32 pixels of about 7 km")
    for name in dict.fromkeys(name for per_class in counts.values() for name in per_class):
        table.add_row(name, *(f"{per_class[name]:,}" if name in per_class else "–" for per_class in counts.values()))
    table.add_section()
    table.add_row("[bold]all", *(f"[bold]{sum(per_class.values()):,}" for per_class in counts.values()))
    console.print(table)


inspection_cli.register(app)

if __name__ == "__main__":
    main()
