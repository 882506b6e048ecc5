"""The commands `moco-data inspect` and `moco-data preview`."""

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
    from moco_accel.inspection.inspect_tiles import Inspection


def register(app: typer.Typer) -> None:
    """Add `inspect` and `preview` to an app."""
    app.command()(inspect)
    app.command()(preview)


def inspect(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="As data.source: folder, file, glob, image folder, hub id.")
    ],
    bands: Annotated[
        str | None, typer.Option(metavar="B8,B4,B3", help="Names of bands, in this order. (default: all)")
    ] = None,
    band_names: Annotated[
        str | None, typer.Option(metavar="B1,B2,…", help="Names of all stored bands, if the source has none.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of the tiles; needed if several hold imagery.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split of the source; without it, the only one.")
    ] = None,
    nodata: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Stored value of nodata: --nodata 0. (default: declared by the tiles)"),
    ] = None,
    sample: Annotated[
        int, typer.Option(min=0, metavar="TILES", help="Number of tiles to read, evenly spaced; 0: all.")
    ] = 1000,
    sheet: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Write a contact sheet of 48 evenly spaced tiles.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout, and no tables.")] = False,
) -> None:
    """Report what a source of tiles holds, and the recipe fields that fit it.

    Counts, sizes, bands, classes, nodata, statistics of each band, damaged
    tiles, the area covered, and whether Sentinel-2 tiles are stored with the
    offset of 1,000, without it, or as a mix of both.

    Statistics cover all tiles if `moco-data build` wrote them (tiles.json),
    else the tiles read.

    Example: moco-data inspect data/tiles --sheet sheet.png
    """
    with user_errors():
        _check_png("--sheet", sheet)
        found = _inspect(
            source,
            sample,
            split=split,
            image_column=image_column,
            bands=parse_names("--bands", bands),
            stored_bands=parse_names("--band-names", band_names),
            nodata=nodata,
        )
        from moco_accel.inspection.inspect_tiles import inspection_as_json
        from moco_accel.inspection.report import list_warnings, print_inspection, recipe_fields

        if as_json:
            fields = inspection_as_json(found)
            print(json.dumps(fields | {"warnings": list_warnings(found), "recipe": recipe_fields(found)}))
        else:
            print_inspection(found, console)
        if sheet is not None:
            from moco_accel.inspection.picture_grid import write_contact_sheet

            write_contact_sheet(sheet, found)
            console.print(f"contact sheet: {escape(str(sheet))}", soft_wrap=True)


def preview(
    source: Annotated[str, typer.Argument(metavar="SOURCE_OR_RECIPE", help="As data.source, or a recipe (.yaml).")],
    out: Annotated[Path, typer.Argument(metavar="OUT.png", help="The picture to write.")],
    recipe: Annotated[
        Path | None, typer.Option(metavar="RECIPE", help="Recipe of the views, for the tiles in SOURCE.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change a field: text as it is, all else as YAML."),
    ] = None,
    bands: Annotated[
        str | None, typer.Option(metavar="B8,B4,B3", help="Three bands to show as red, green, blue beside true colour.")
    ] = None,
    tiles: Annotated[int, typer.Option(min=1, max=50, metavar="ROWS", help="Number of evenly spaced tiles.")] = 6,
) -> None:
    """Draw tiles beside both views of each, as in a run's first epoch.

    Without a recipe, the views have 224 pixels and the preset `satellite`, and
    tiles are scaled as `moco-data inspect` advises; --set changes any field.

    Tiles of more than three bands are drawn a second time with --bands, or with
    near infrared, red and green if band names are known. Boxes in a tile show
    where its views were cropped.

    Example: moco-data preview recipes/dual8gb.yaml views.png --set data.source=data/tiles

    Example: moco-data preview data/tiles views.png --set augment.preset=paper
    """
    with user_errors():
        _check_png("OUT", out)
        from moco_accel.inspection.open_without_recipe import name_options_in_errors
        from moco_accel.inspection.preview import preview_recipe, write_preview

        is_source = recipe is None and not source.endswith((".yaml", ".yml"))
        with console.status("making views"), name_options_in_errors(None) if is_source else nullcontext():
            write_preview(out, preview_recipe(source, recipe, set_ or []), tiles, parse_names("--bands", bands))
        console.print(f"views: {escape(str(out))}", soft_wrap=True)


def _check_png(option: str, path: Path | None) -> None:
    if path is not None and path.suffix.lower() != ".png":
        raise UserError(f"{option}={str(path)!r} does not end in .png; {path.with_suffix('.png').name} works")


def parse_names(option: str, text: str | None) -> list[str] | None:
    """Split the names of an option; None if it is absent."""
    return None if text is None else parse_bands(text, option)


def _inspect(source: str, sample: int, **data_fields: Any) -> Inspection:
    from moco_accel.inspection.inspect_tiles import inspect_tiles
    from moco_accel.inspection.open_without_recipe import INSPECT_OPTIONS, name_options_in_errors, open_without_recipe

    with name_options_in_errors(INSPECT_OPTIONS):
        with console.status("opening tiles"):
            tiles = open_without_recipe(source, **data_fields)
        with progress_bar() as progress:
            task = progress.add_task("tiles", total=None)
            return inspect_tiles(tiles, sample, lambda done, total: progress.update(task, completed=done, total=total))
