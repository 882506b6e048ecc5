"""moco-data inspect and moco-data preview: look at tiles before training on them."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from moco_accel.common.console import console, progress_bar, user_errors
from moco_accel.common.errors import UserError
from moco_accel.recipe.bands import parse_bands

if TYPE_CHECKING:
    from moco_accel.inspection.inspection import Inspection
    from moco_accel.tiles.tiles import Tiles

_SAMPLE, _ROWS = 1000, 6
Bands = Annotated[str | None, typer.Option(metavar="B8,B4,B3", help="Names of bands, in this order. (default: all)")]
BandNames = Annotated[
    str | None, typer.Option(metavar="B1,B2,…", help="Names of all bands as stored, where the source has none.")
]
ImageColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column of the tiles; needed only if several hold imagery.")
]
Split = Annotated[str, typer.Option(metavar="NAME", help="Of a hub id.")]


def register(app: typer.Typer) -> None:
    """Add both commands to `moco-data`."""
    app.command()(inspect)
    app.command()(preview)


def inspect(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="What data.source takes: folder, file, glob, image folder, hub id.")
    ],
    bands: Bands = None,
    band_names: BandNames = None,
    image_column: ImageColumn = None,
    split: Split = "train",
    nodata: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Stored where there is no data: --nodata 0. (default: as the tiles say)"),
    ] = None,
    sample: Annotated[
        int, typer.Option(min=0, metavar="TILES", help="How many tiles to read, spread evenly; 0: all.")
    ] = _SAMPLE,
    sheet: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Write a contact sheet of 48 tiles, spread evenly.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as one JSON object on stdout, no tables.")] = False,
) -> None:
    """Say what a source of tiles holds, and what to write about it into a recipe.

    Counts, sizes, bands by name, classes, nodata, statistics of each band,
    damaged tiles, where the tiles lie, and whether Sentinel-2 tiles are stored
    with the offset of 1,000, without it, or, by mistake, some of each.

    Statistics are those of all tiles where `moco-data build` left them
    (tiles.json), else those of the tiles read.

    Example: moco-data inspect data/tiles --sheet sheet.png
    """
    with user_errors():
        _check_png("--sheet", sheet)
        tiles, found = _inspect(
            source,
            sample,
            split=split,
            image_column=image_column,
            bands=_names("--bands", bands),
            stored_bands=_names("--band-names", band_names),
            nodata=nodata,
        )
        if as_json:
            print(json.dumps(_everything(found)))
        else:
            from moco_accel.inspection.report import print_inspection

            print_inspection(found, console)
        if sheet is not None:
            from moco_accel.inspection.contact_sheet import write_sheet

            write_sheet(sheet, tiles, found)
            console.print(f"contact sheet: {escape(str(sheet))}", soft_wrap=True)


def preview(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE_OR_RECIPE", help="What data.source takes, or a recipe (.yaml).")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.png", help="The picture to write.")],
    recipe: Annotated[
        Path | None, typer.Option(metavar="RECIPE", help="The views of this recipe, of the tiles in SOURCE.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change a field: text as it is, all else as YAML."),
    ] = None,
    bands: Annotated[
        str | None, typer.Option(metavar="B8,B4,B3", help="Three bands to show as red, green, blue beside true colour.")
    ] = None,
    tiles: Annotated[int, typer.Option(min=1, max=50, metavar="ROWS", help="How many tiles, spread evenly.")] = _ROWS,
) -> None:
    """Draw tiles beside view 1 and view 2 of each, as a run makes them in its first epoch.

    Without a recipe: the views of the preset `satellite`, of 224 pixels, the
    tiles scaled as `moco-data inspect` advises; --set changes any of it.

    Tiles of more than three bands are shown a second time, in --bands, or else
    in near infrared, red and green where names tell. Boxes in a tile are where
    its views were cut out.

    Example: moco-data preview recipes/dual8gb.yaml views.png --set data.source=data/tiles

    Example: moco-data preview data/tiles views.png --set augment.preset=paper
    """
    with user_errors():
        _check_png("OUT", out)
        from moco_accel.inspection.opening import naming_options
        from moco_accel.inspection.preview import preview_recipe, write_preview

        is_source = recipe is None and not source.endswith((".yaml", ".yml"))
        with console.status("making views"), naming_options(None) if is_source else nullcontext():
            write_preview(out, preview_recipe(source, recipe, set_ or []), tiles, _names("--bands", bands))
        console.print(f"views: {escape(str(out))}", soft_wrap=True)


def _check_png(option: str, path: Path | None) -> None:
    if path is not None and path.suffix.lower() != ".png":
        raise UserError(f"{option}={str(path)!r} does not end in .png; {path.with_suffix('.png').name} works")


def _names(option: str, text: str | None) -> list[str] | None:
    return None if text is None else parse_bands(text, option)


def _inspect(source: str, sample: int, **said: Any) -> tuple[Tiles, Inspection]:
    from moco_accel.inspection.inspection import inspect_tiles
    from moco_accel.inspection.opening import INSPECT_OPTIONS, naming_options, open_unknown

    with naming_options(INSPECT_OPTIONS):
        with console.status("opening"):
            tiles = open_unknown(source, **said)
        with progress_bar() as progress:
            task = progress.add_task("tiles", total=None)
            found = inspect_tiles(tiles, sample, lambda done, total: progress.update(task, completed=done, total=total))
    return tiles, found


def _everything(found: Inspection) -> dict[str, Any]:
    from moco_accel.inspection.inspection import as_json
    from moco_accel.inspection.report import recipe_fields, warnings_of

    return as_json(found) | {"warnings": warnings_of(found), "recipe": recipe_fields(found)}
