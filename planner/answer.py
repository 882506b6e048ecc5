"""From a request to an answer: find the card, search, report, write the recipe."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from rich.live import Live

from moco_accel.console import console
from moco_accel.recipe import Recipe, load_recipe, save_recipe
from moco_accel.recipe_text import RecipeError
from planner import report
from planner.devices import GIB, Card, cards_of_this_machine, generic_card
from planner.header import header
from planner.request import DEFAULT_ENCODER, Request, launch_command, recipe_for, recipe_path

CPU_RECIPE = Path("recipes/cpu_demo.yaml")


def run(
    request: Request,
    gpus: int | None,
    precision: str | None,
    recipe_file: Path | None,
    output: Path | None,
    tiles: int | None,
    as_json: bool,
) -> int:
    """Answer on stderr (and, as JSON, on stdout). Returns the exit code; raises RecipeError for the user's mistakes."""
    recipe = load_recipe(recipe_file) if recipe_file is not None else None
    vram_gib = request.vram_gib or (recipe.hardware.vram_gib if recipe is not None else None)
    if vram_gib is not None:
        card = generic_card(vram_gib)
    else:
        cards = cards_of_this_machine()
        if not cards:
            return without_gpu(recipe, recipe_file, as_json)
        card = min(cards, key=lambda card: card.reported_bytes)
        request = dataclasses.replace(request, gpus=gpus or len(cards))
    check_precision(card, recipe.memory.mixed_precision if recipe is not None else precision)
    if recipe is not None:
        return judge(recipe, recipe_file, card, gpus, tiles, as_json)
    request = dataclasses.replace(
        request, vram_gib=card.marketed_gib, mixed_precision=precision or card.precision,
        gpu=None if vram_gib is not None else card.name,
    )  # fmt: skip
    return plan(request, card, output, tiles, as_json)


def plan(request: Request, card: Card, output: Path | None, tiles: int | None, as_json: bool) -> int:
    """The table of encoders, the chosen one's budget, and its recipe written."""
    chosen_name = request.encoder or DEFAULT_ENCODER
    first = recipe_for(request, chosen_name)  # the mistakes that need no torch come before it is imported
    console.print(report.hardware(card, request.gpus))
    console.print(f"\n{report.asked_for(first)}", soft_wrap=True)
    from planner.search import TABLE_ENCODERS, Candidate, best, planned, retraced_difference

    names = [chosen_name] if request.encoder else [chosen_name, *(n for n in TABLE_ENCODERS if n != chosen_name)]
    found: list[Candidate] = []
    with Live(report.candidates_table(found, tiles, names[0]), console=console, transient=True) as live:
        for place, name in enumerate(names, start=1):
            found.append(best(recipe_for(request, name), card))
            live.update(report.candidates_table(found, tiles, names[place] if place < len(names) else None))
    chosen = found[0]
    found.sort(key=lambda candidate: (*TABLE_ENCODERS, chosen_name).index(candidate.recipe.encoder.name))
    console.print(report.candidates_table(found, tiles), end="\n\n")
    path = str(output or recipe_path(request, card.marketed_gib)) if chosen.memory.fits else None
    checked = retraced_difference(chosen, card) if chosen.memory.fits else None
    command = None
    if path is not None:
        command = launch_command(request.gpus, path)
        save_recipe(planned(chosen), path, comment=header(chosen.recipe, command, report.EVIDENCE))
    console.print(f"[bold]{chosen.recipe.encoder.name}[/] at its peak, MiB on each card")
    console.print(report.budget_bar(chosen))
    console.print(report.outcome(chosen, card, path, command, checked), soft_wrap=True)
    if as_json:
        print(report.as_json(card, request.gpus, found, chosen, path))
    return 0 if chosen.memory.fits else 1


def judge(recipe: Recipe, path: Path | None, card: Card, gpus: int | None, tiles: int | None, as_json: bool) -> int:
    """Does a recipe fit a card, as it is?"""
    devices = recipe.hardware.num_devices
    if gpus is not None and gpus != devices:
        raise RecipeError(f"--gpus={gpus} but hardware.num_devices={devices} in {path}; --gpus {devices} works")
    console.print(report.hardware(card, devices))
    console.print(f"\n{report.asked_for(recipe)}", soft_wrap=True)
    from planner.search import fit

    with console.status(f"tracing {recipe.encoder.name}"):
        candidate = fit(recipe, card)
    console.print(report.candidates_table([candidate], tiles))
    console.print(report.budget_bar(candidate))
    command = launch_command(devices, str(path)) if candidate.memory.fits else None
    console.print(report.outcome(candidate, card, None, command, None), soft_wrap=True)
    if as_json:
        print(report.as_json(card, devices, [candidate], candidate, str(path)))
    return 0 if candidate.memory.fits else 1


def without_gpu(recipe: Recipe | None, path: Path | None, as_json: bool) -> int:
    """This machine has no GPU: say so, and how much of its own memory a CPU recipe takes."""
    console.print("torch sees no GPU here; name the ones you have elsewhere: moco-plan --gpus 2 --vram 8")
    if recipe is None and CPU_RECIPE.is_file():
        recipe, path = load_recipe(CPU_RECIPE), CPU_RECIPE
    if recipe is None:
        return 0
    from planner.allocator import replay
    from planner.trace import trace_step

    with console.status(f"tracing {recipe.encoder.name} for the CPU"):
        taken = replay(trace_step(recipe, None, steps=2).events).peak_requested_bytes
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    console.print(
        f"{path} on the CPU: {report.mib(taken)} MiB of tensors at the peak, beside Python and torch; this machine has "
        f"{have / GIB:.1f} GiB. Predicted, not measured."
    )
    if as_json:
        print(report.cpu_json(taken, have, str(path)))
    return 0 if taken < have else 1


def check_precision(card: Card, precision: str | None) -> None:
    if precision == "bf16" and not card.bf16:
        raise RecipeError(f"--precision=bf16: {card.name} computes in fp16 only; --precision fp16 works")
