"""Mutate shipped recipes (fields, types, keys, bytes), and check the invariants of every recipe that loads."""

# ruff: noqa: E501 - tables
from __future__ import annotations

import copy
import math
import shlex
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from hypothesis import strategies as st

from moco_accel.common.errors import UserError
from moco_accel.recipe.load import load_recipe, save_recipe
from moco_accel.recipe.overrides import apply_overrides, override_argument
from moco_accel.recipe.rules import check_rules
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.damaged_tiles import max_damaged_tiles
from moco_accel.tiles.sampler import MicroBatchSampler
from moco_accel.training.optimizers import lr_at, momentum_coefficient_at
from moco_accel.views.crops import make_crop
from moco_accel.views.parameters import worst_case_photometry

MAX_SECONDS = 2.0
MAX_MESSAGE_CHARACTERS = 3000

SHIPPED = [path.read_bytes() for path in sorted(Path("recipes").glob("*.yaml"))]
PARSED = [yaml.safe_load(raw.replace(b"e-", b".0e-")) for raw in SHIPPED]
LOADED = load_recipe(sorted(Path("recipes").glob("*.yaml"))[0])
FIELDS = [(section, field) for section, fields in LOADED if fields for field, _ in fields]

ODD_TEXT = st.text(max_size=30) | st.sampled_from(
    ["", " ", "\0", "a\nb", "\ufeff", "\ud800", "\u2028", "../" * 40, "~", "null", "x" * 5000, "1e5", "0x10", "010", "yes",
     ".nan", "1:30", "=", "<<", "*", "[a", "[red]b[/]", "%s{}", "B04", "'", "# x", "- a", "a: b", "2020-01-01"]
)  # fmt: skip
ODD_NUMBERS = (
    st.integers()
    | st.floats()
    | st.sampled_from(
        [0, -1, 1, 2, 2**31, 2**63, 2**64, 10**300, 10**4000, -(10**50), 1e308, 1e-308, 5e-324, 1e39, math.nan, math.inf,
         -math.inf, -0.0, 0.1, 0.5, 1.5, 16, 7, 1e9, True, False]
    )
)  # fmt: skip
ODD = st.recursive(
    st.none() | ODD_NUMBERS | ODD_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ODD_TEXT, inner, max_size=3),
    max_leaves=8,
)
FRAGMENTS = st.sampled_from(
    [b"&a [*a, *a]", b"*a", b"!!python/object/apply:os.system ['exit 1']", b"!!int ''", b"!!float x", b"!!binary '='",
     b"!!timestamp x", b"---\n", b"...\n", b"\t", b"\xef\xbb\xbf", b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"[" * 300, b"{" * 300,
     b"- " * 200, b"? ", b"<<: {lr: 1}\n", b"%YAML 9.9\n", b"%TAG ! x\n", b": ", b"|\n", b">-\n", b'"\\ud800"', b"'", b'"',
     b"9" * 5000, b"0x" + b"f" * 5000, b"1:" * 900, b"1e999", b"-1e999", b".inf", b"\r", b"\x85", b"\xe2\x80\xa8", b"#",
     b"encoder: {}\n", b"data: {source: a}\n", b"x" * 70_000, b"a,\n" * 9000, b"\x1b[31m"]
) | st.binary(max_size=12)  # fmt: skip


@st.composite
def changed_fields(draw: st.DrawFn) -> bytes:
    """Draw a recipe's YAML with up to four fields or sections changed, added or removed."""
    fields: Any = copy.deepcopy(draw(st.sampled_from(PARSED)))
    for _ in range(draw(st.integers(1, 4))):
        section, field = draw(st.sampled_from(FIELDS))
        inside = fields.setdefault(section, {})
        change = draw(
            st.sampled_from(["set", "set", "set", "number", "number", "drop", "add", "section", "drop section"])
        )
        if change == "section":
            fields[section] = draw(ODD)
        elif change == "drop section" or not isinstance(inside, dict):
            fields.pop(section)
        elif change == "drop":
            inside.pop(field, None)
        else:
            values = ODD if change != "number" else ODD_NUMBERS
            inside[field if change != "add" else draw(ODD_TEXT)] = draw(values)
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=draw(st.booleans())).encode(errors="surrogatepass")


@st.composite
def changed_bytes(draw: st.DrawFn) -> bytes:
    """Draw a recipe's text with pieces inserted, removed or doubled."""
    raw = draw(st.sampled_from(SHIPPED))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(raw)))
        end = draw(st.integers(start, min(len(raw), start + 60)))
        raw = raw[:start] + draw(st.just(b"") | st.just(raw[start:end] * 2) | FRAGMENTS) + raw[end:]
    return raw


MUTATED = changed_fields() | changed_bytes()
OVERRIDES = st.builds(
    lambda name, text: f"{'.'.join(name)}={text}",
    st.sampled_from(FIELDS) | st.tuples(ODD_TEXT, ODD_TEXT),
    ODD_TEXT | ODD.map(repr) | FRAGMENTS.map(lambda raw: raw.decode(errors="surrogateescape")),
)


def load_or_refuse(path: Path, overrides: list[str] | None = None) -> str:
    """Return `loaded` or `refused`; fail on any other error, a second line, or more than MAX_SECONDS of CPU time."""
    start = time.process_time()
    try:
        recipe = load_recipe(path, overrides)
    except UserError as error:
        message = str(error)
        assert len(message.splitlines()) == 1, message
        assert len(message) < MAX_MESSAGE_CHARACTERS, message
        result = "refused"
    else:
        check_invariants(recipe, path.with_name("saved.yaml"))
        result = "loaded"
    seconds = time.process_time() - start
    assert seconds < MAX_SECONDS, seconds
    return result


def check_invariants(recipe: Recipe, saved: Path) -> None:
    """Check that a recipe survives a round trip through YAML, and that all values derived from it are finite."""
    check_rules(recipe)
    save_recipe(recipe, saved, comment="two\nlines")
    assert load_recipe(saved) == recipe
    for section, fields in recipe:
        if fields and section != "planned":
            for field, value in fields:
                (argument,) = shlex.split(override_argument(f"{section}.{field}", value))
                assert apply_overrides({}, [argument]) == {section: {field: value}}, argument
    epochs = recipe.schedule.epochs
    for epoch in (0, recipe.schedule.warmup_epochs, epochs / 2, epochs - 1e-3, epochs):
        assert 0 <= lr_at(recipe, epoch) <= recipe.optimizer.lr * (1 + 1e-9)
        assert 0 <= momentum_coefficient_at(recipe, epoch) <= 1
    assert math.isfinite(recipe.chance_loss)
    assert 0 <= max_damaged_tiles(recipe, 1000) < 1000
    worst_case_photometry(recipe)
    check_sampler(recipe)
    if recipe.data.scaling != "percentiles" and recipe.encoder.image_size <= 64:
        check_crop(recipe)


def check_sampler(recipe: Recipe) -> None:
    """Draw the first micro-batch of the last rank, unless an epoch has too many tiles to order quickly."""
    tiles = recipe.batch.global_batch_size + 3
    if tiles < 100_000 and recipe.batch.micro_batch_size * recipe.batch.accumulation_steps < 100_000:
        sampler = MicroBatchSampler(recipe, tiles, recipe.hardware.num_devices - 1, 0)
        assert len(sampler) == recipe.schedule.epochs * recipe.batch.accumulation_steps
        assert len(next(islice(sampler, 1))) == recipe.batch.micro_batch_size


def check_crop(recipe: Recipe) -> None:
    dtype = torch.uint8 if recipe.data.scaling == "uint8" else torch.int16
    tile = torch.arange(recipe.encoder.bands * 256, dtype=torch.float32).remainder(251).to(dtype)
    crop = make_crop(tile.reshape(-1, 16, 16), recipe, 0, 0, 1)
    assert torch.isfinite(crop.pixels.float()).all()
