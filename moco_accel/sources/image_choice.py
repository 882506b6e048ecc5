"""Choose the images of a folder that make tiles: masks are left out, kinds that do not fit together are refused."""

from __future__ import annotations

import glob
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from moco_accel.common.errors import UserError
from moco_accel.images.decoding import decode_image, image_facts
from moco_accel.images.globs import glob_matcher
from moco_accel.images.headers import DamagedTile, read_file
from moco_accel.images.label_maps import confirm_masks, find_masks, is_label_map
from moco_accel.sources.base import Source

MIN_SHARE = 0.01  # of the files: fewer of another kind are damaged tiles, which a run counts
_ASKED_FILES, _ASKED_BYTES = 1000, 1 << 29
_DECODED_FILES = 32
_MAX_NAMED = 5
_GREY, _COLOUR, _PICTURE = "8-bit grey", "8-bit colour", "8-bit pictures"  # kinds
_WHOLE_FLOATS = {"float64": "float32", "float16": "float32"}  # read as one type

Log = Callable[[str], None]


def choose_images(folder: Path, names: list[str], source: Source, log: Log) -> list[str]:
    """Return the images `names` below `folder` that are tiles.

    Names tell masks, and the values of a sample do. `log` receives a line about those left out, and about grey
    pictures beside colour.

    Raises:
        UserError: If kinds of images compete. The message has the count, an example and, where there is one, a glob of
            each.
    """
    if masks := set(confirm_masks(folder, find_masks(names))):
        first = min(masks)
        beside = sorted(name for name in masks if os.path.dirname(name) == os.path.dirname(first))  # noqa: PTH120
        names = [name for name in names if name not in masks]
        log(
            f"{source}: {_count(masks)} with the names of masks are left out, e.g. {first}; "
            f"{source.field}={_glob_value(folder, beside, names)} reads such"
        )
    kinds = _sort_by_kind(folder, names)
    labels = _find_label_maps(folder, kinds)
    if labels and len(kinds) > 1:
        names = _leave_out(folder, names, labels, kinds, source, log)
        kinds = _sort_by_kind(folder, names)
    _log_grey(kinds, source, log)
    pictures = [name for key in (_GREY, _COLOUR) for name in kinds.pop(key, [])]
    _check_one_kind(folder, kinds | ({_PICTURE: pictures} if pictures else {}), source)
    return names


def _sample(names: Sequence[str]) -> list[str]:
    """Return up to 1,000 names, spread evenly, in an order whose beginning is spread evenly, too."""
    count = min(len(names), _ASKED_FILES)
    chosen = [names[number * len(names) // count] for number in range(count)]
    random.Random(0).shuffle(chosen)
    return chosen


def _sort_by_kind(folder: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of a sample by number of bands and type; files that cannot be read are in no kind."""
    kinds: dict[str, list[str]] = defaultdict(list)
    read = 0
    for name in _sample(names):
        if read > _ASKED_BYTES:
            break
        with suppress(DamagedTile, FileNotFoundError):
            raw = read_file(folder / name)
            read += len(raw)
            kinds[_kind(name, raw)].append(name)
    return dict(kinds)


def _kind(name: str, raw: bytes) -> str:
    """Return a kind in words: grey, colour with or without alpha, or bands of a type."""
    facts = image_facts(raw)
    bands, dtype = facts.bands, _WHOLE_FLOATS.get(facts.dtype, facts.dtype)
    if not bands or not facts.dtype:
        pixels = decode_image(raw).pixels
        bands, dtype = len(pixels), _WHOLE_FLOATS.get(pixels.dtype.name, pixels.dtype.name)
        if name.lower().endswith(".npy"):  # which axis holds the bands is decided later
            return f".npy of {dtype}"
    bands -= facts.has_alpha
    if dtype in ("uint8", "bool") and bands in (1, 3):
        return _GREY if bands == 1 else _COLOUR
    return f"{bands} band{'s' * (bands > 1)} of {dtype}"


def _find_label_maps(folder: Path, kinds: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return those kinds of one band whose sampled files are all label maps."""
    found = {}
    for kind, names in kinds.items():
        if kind != _GREY and not kind.startswith("1 band of "):
            continue
        with suppress(DamagedTile, FileNotFoundError):
            if all(is_label_map(decode_image(read_file(folder / name)).pixels) for name in names[:_DECODED_FILES]):
                found[kind] = names
    return found if len(found) < len(kinds) else {}


def _leave_out(
    folder: Path,
    names: list[str],
    labels: dict[str, list[str]],
    kinds: dict[str, list[str]],
    source: Source,
    log: Log,
) -> list[str]:
    """Return the names without label maps, which a glob must tell from the others."""
    maps = sorted(name for found in labels.values() for name in found)
    others = sorted(name for kind, found in kinds.items() if kind not in labels for name in found)
    pattern = _find_glob(maps, others)
    if not pattern and len(names) > len(maps) + len(others):
        return names  # no rule for the files that were not asked: the kinds are refused
    matches = glob_matcher(pattern) if pattern else set(maps).__contains__
    kept = [name for name in names if not matches(name)]
    log(
        f"{source}: {len(names) - len(kept):,} images of few values, which masks and label maps have, are left out, "
        f"e.g. {maps[0]}; {source.field}={_glob_value(folder, maps, others)} reads those"
    )
    return kept


def _log_grey(kinds: dict[str, list[str]], source: Source, log: Log) -> None:
    grey, colour = kinds.get(_GREY, []), kinds.get(_COLOUR, [])
    if grey and colour:
        asked = len(grey) + len(colour)
        log(f"{source}: {len(grey):,} of {asked:,} sampled images are grey, and are read as colour; e.g. {min(grey)}")


def _check_one_kind(folder: Path, kinds: dict[str, list[str]], source: Source) -> None:
    total = sum(map(len, kinds.values()))
    competing = {kind: sorted(names) for kind, names in kinds.items() if len(names) > MIN_SHARE * total}
    if len(competing) < 2:
        return
    texts = []
    for kind, names in sorted(competing.items(), key=lambda item: -len(item[1]))[:_MAX_NAMED]:
        others = [name for other, found in kinds.items() if other != kind for name in found]
        value = _glob_value(folder, names, others)
        texts.append(f"{len(names):,} of {kind}, e.g. {names[0]}: {source.field}={value} works")
    raise UserError(
        f"{source} holds {len(competing)} kinds of images, of which one can be read "
        f"({total:,} files were looked at): {'; '.join(texts)}"
    )


def _glob_value(folder: Path, wanted: Sequence[str], others: Sequence[str]) -> str:
    """Return the value of a source that selects the wanted files only, quoted; if no glob does, how to get one."""
    pattern = _find_glob(wanted, others)
    root = glob.escape(str(folder)) if glob.has_magic(str(folder)) else str(folder)
    return repr(f"{root}/{pattern}") if pattern else "FOLDER with only these files"


def _find_glob(wanted: Sequence[str], others: Sequence[str]) -> str:
    """Return a glob that matches all of `wanted` and none of `others`; empty if no simple one does."""
    for pattern in _candidates(wanted):
        matches = glob_matcher(pattern)
        if all(map(matches, wanted)) and not any(map(matches, others)):
            return pattern
    return ""


def _candidates(wanted: Sequence[str]) -> Iterator[str]:
    """Yield globs by folder, by suffix, by ending and by beginning of the names."""
    if len(wanted) == 1:
        yield glob.escape(wanted[0])
    paths = [PurePosixPath(name) for name in wanted]
    above = PurePosixPath(os.path.commonpath([f"/{path.parent}" for path in paths])).relative_to("/")
    suffixes = {path.suffix for path in paths}
    suffix = glob.escape(suffixes.pop()) if len(suffixes) == 1 else ""
    depths = {len(path.parts) for path in paths}
    below = "*" if depths == {len(above.parts) + 1} else "**/*"
    if above.parts:
        yield f"{glob.escape(str(above))}/{below}{suffix}"
    for part in sorted(set.intersection(*(set(path.parts[:-1]) for path in paths))):
        yield f"**/{glob.escape(part)}/**/*{suffix}"
    flat = "" if depths == {1} else "**/"
    if suffix:
        yield f"{flat}*{suffix}"
    names = [path.name for path in paths]
    ending = os.path.commonprefix([name[::-1] for name in names])[::-1]  # noqa: RUF071 - characters are compared
    beginning = os.path.commonprefix(names)  # noqa: RUF071 - characters are compared
    if len(ending) > 1:
        yield f"{flat}*{glob.escape(ending)}"
    if beginning:
        yield f"{flat}{glob.escape(beginning)}*{suffix}"


def _count(names: set[str]) -> str:
    return f"{len(names):,} image{'s' * (len(names) > 1)}"
