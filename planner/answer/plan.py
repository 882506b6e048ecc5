"""Answer `moco-plan`: find or check a recipe, report, write it. torch is imported only if a result is not cached."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.live import Live
from rich.markup import escape

from moco_accel.common.console import console
from moco_accel.common.errors import UserError, error_reason
from moco_accel.recipe.launch_command import FIRST_NODE, launch_command
from moco_accel.recipe.load import load_recipe, save_recipe
from moco_accel.recipe.schema import Recipe
from planner.answer import checks
from planner.answer.launch import launch_lines, recipe_header, write_slurm_job
from planner.answer.request import (
    DEFAULT_ENCODER,
    TABLE_ENCODERS,
    PlanOptions,
    Request,
    build_recipe,
    complete_request,
    default_recipe_path,
    few_steps_warning,
    find_cards,
)
from planner.cards.card import GIB, Card
from planner.cards.fleet import Fleet
from planner.evidence.records import append_row, evidence_label, load_measurements, measured_path
from planner.memory.allocator import replay
from planner.memory.memory_estimate import MemoryEstimate
from planner.report import reasons, tables
from planner.report.json_output import PlanResult, result_as_json
from planner.report.page import Page
from planner.search.cache import cached
from planner.search.candidate import Candidate, Change, with_planned_section

if TYPE_CHECKING:  # it imports torch
    from planner.evidence.measure import Measurement

_CPU_RECIPE = Path("recipes/cpu_demo.yaml")


def run_plan(options: PlanOptions) -> int:
    """Print the report on stderr, and JSON on stdout if requested; return 0 if the recipe fits, 1 if not.

    Raises:
        UserError: If an option is wrong.
    """
    if options.save is not None:
        checks.check_report_path(options.save)
    if options.slurm is not None:
        checks.check_writable("--slurm", options.slurm, "job.sbatch")
    recipe = load_recipe(options.recipe_file) if options.recipe_file is not None else None
    checks.check_nodes(options.nodes, recipe, options.recipe_file)
    cards = find_cards(options, recipe)
    page = Page()
    if cards is None:
        code = _plan_without_gpu(options, recipe, page)
    elif recipe is not None:
        code = _check_recipe(options, recipe, cards, page)
    else:
        code = _plan_recipe(options, complete_request(options.request, cards), cards, page)
    if options.save is not None:
        page.save(options.save)
        console.print(f"Report saved to {escape(str(options.save))}", soft_wrap=True)
    return code


def _plan_without_gpu(options: PlanOptions, recipe: Recipe | None, page: Page) -> int:
    """Report that there is no GPU, and the host memory that a recipe takes on the CPU."""
    checks.check_request(options.request, options.tiles)
    if recipe is None and options.slurm is not None:
        raise UserError(f"--slurm={options.slurm} needs named GPUs or a recipe; --vram 8 works")
    page.show("torch finds no GPU on this machine; name the GPUs of another one: moco-plan --gpus 2 --vram 8")
    path = options.recipe_file
    if recipe is None and _CPU_RECIPE.is_file():
        recipe, path = load_recipe(_CPU_RECIPE), _CPU_RECIPE
    if recipe is None:
        if options.as_json:
            print(json.dumps({"hardware": {"gpu": None, "num_devices": 0}, "candidates": [], "chosen": None}))
        return 0
    return _plan_for_cpu(options, recipe, str(path), page)


def _plan_for_cpu(options: PlanOptions, recipe: Recipe, path: str, page: Page) -> int:
    from planner.trace.trace import trace_step

    with console.status(f"tracing {recipe.encoder.name} for the CPU"):
        peak_bytes = replay(trace_step(recipe, None, steps=2).events).peak_requested_bytes
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fits = peak_bytes < machine_bytes
    page.show(
        f"{escape(path)} on the CPU: {tables.mib(peak_bytes)} MiB of tensors at the peak, beside Python and torch; "
        f"this machine has {machine_bytes / GIB:.1f} GiB. Predicted, not measured."
    )
    if options.as_json:
        fields = {
            "hardware": {"gpu": None, "num_devices": 0, "machine_bytes": machine_bytes},
            "candidates": [],
            "chosen": {"peak_allocated_bytes": peak_bytes, "fits": fits, "evidence": "predicted"},
            "recipe": path,
        }
        print(json.dumps(fields, indent=2))
    if fits:
        page.show(*write_slurm_job(options.slurm, recipe, path))
    return 0 if fits else 1


def _plan_recipe(options: PlanOptions, request: Request, cards: Fleet, page: Page) -> int:
    """Search a recipe for each encoder of the table, report on the chosen one and write it."""
    card, name = cards.limiting, request.encoder or DEFAULT_ENCODER
    checks.check_request(request, options.tiles)
    requested = build_recipe(request, name)  # mistakes that need no torch are reported before it is imported
    if request.mixed_precision == "bf16" and not card.has_bf16:
        raise UserError(f"--precision=bf16 but {card.name} has no bf16; --precision fp16 works")
    output = options.output or Path(default_recipe_path(request, card.marketed_gib))
    output, kept = checks.output_path(output, requested, options.output is None)
    page.show(tables.hardware_table(cards), f"\n{tables.training_summary(requested)}")
    page.show(*([f"[yellow]{options.batch_note}[/]"] if options.batch_note else []))
    candidates = _search_encoders(options, request, card, name)
    chosen = next(candidate for candidate in candidates if candidate.recipe.encoder.name == name)
    page.show(tables.candidates_table(candidates, options.tiles))
    page.show(*reasons.compare_encoders(candidates, chosen), *reasons.sharding_note(chosen), "")
    page.show(*tables.memory_budget(chosen))
    with console.status("tracing the paper's step"):
        paper_step = cached("planner.memory.estimate.estimate_paper_step", MemoryEstimate, chosen.recipe, card)
    page.show(tables.paper_step_comparison(chosen, paper_step))
    _show_step(page, chosen, options.tiles)
    measured = path = None
    if chosen.memory.fits:
        _check_scaling(page, chosen, card)
        measured = _measure(options, chosen)
        path = str(output)
        planned = with_planned_section(chosen, measured.gpu if measured else None)
        command = launch_command(planned.hardware, path)
        page.show(*([f"[yellow]{escape(kept)}[/]"] if kept else []))
        save_recipe(planned, path, recipe_header(chosen.recipe, command, evidence_label(card, load_measurements())))
    return _finish(options, page, cards, PlanResult(candidates, chosen, path, measured, paper_step))


def _check_recipe(options: PlanOptions, recipe: Recipe, cards: Fleet, page: Page) -> int:
    """Report whether a recipe fits the cards as it is."""
    checks.check_recipe_hardware(cards, recipe, options.recipe_file)
    card = cards.limiting
    page.show(tables.hardware_table(cards), f"\n{tables.training_summary(recipe)}")
    with console.status(f"tracing {recipe.encoder.name}"):
        candidate = cached("planner.search.best_recipe.evaluate", Candidate, recipe, card)
    page.show(tables.candidates_table([candidate], options.tiles), "", *tables.memory_budget(candidate))
    page.show(*reasons.compare_with_planned(recipe, candidate))
    _show_step(page, candidate, options.tiles)
    measured = _measure(options, candidate)
    return _finish(options, page, cards, PlanResult([candidate], candidate, str(options.recipe_file), measured))


def _finish(options: PlanOptions, page: Page, cards: Fleet, result: PlanResult) -> int:
    """Report the changes that make it fit, the accuracy, the recipe and its launch commands."""
    card, chosen, rows = cards.limiting, result.chosen, load_measurements()
    if not chosen.memory.fits:
        with console.status("searching for changes that make it fit"):
            changes = cached("planner.search.best_recipe.find_changes", list[Change], chosen.recipe, card)
        result = dataclasses.replace(result, changes=changes)
        page.show(*reasons.explain_misfit(chosen, changes))
    if result.measured is not None:
        page.show(tables.measurement_table(chosen, result.measured))
    page.show(*reasons.describe_accuracy(result.candidates, card, rows))
    if chosen.memory.fits:
        hardware, path = chosen.recipe.hardware, str(result.recipe_path)
        nodes = f"; run on each node, {FIRST_NODE} is the first node's address:" if hardware.num_nodes > 1 else ""
        page.show(f"Recipe: [bold]{escape(path)}[/]{nodes}")
        page.show(*(f"[bold green]{escape(line)}[/]" for line in launch_lines(hardware, path)))
        page.show(*write_slurm_job(options.slurm, chosen.recipe, path))
        result = dataclasses.replace(result, slurm_job=None if options.slurm is None else str(options.slurm))
    if options.as_json:
        print(result_as_json(cards, result, rows))
    return 0 if chosen.memory.fits else 1


def _show_step(page: Page, candidate: Candidate, tiles: int | None) -> None:
    page.show(tables.describe_operations(candidate), *tables.communication_report(candidate))
    recipe = candidate.recipe
    few_steps = few_steps_warning(recipe.batch.global_batch_size, recipe.hardware.num_devices, tiles)
    warnings = [text for text in (few_steps, reasons.micro_batch_warning(candidate)) if text]
    page.show(*(f"[bold yellow]warning:[/] {text}" for text in warnings))


def _check_scaling(page: Page, chosen: Candidate, card: Card) -> None:
    """Check the scaled trace at the chosen micro-batch size, before a recipe is written."""
    difference = cached("planner.search.best_recipe.check_scaling", float, chosen.recipe, card)
    page.show(f"A second trace at this micro-batch size differs from the table by {difference:+.1%}.")
    allowed = max(chosen.memory.off_share, card.headroom_bytes / chosen.memory.peak_reserved_bytes)
    assert abs(difference) < allowed, f"scaling is off by {difference:+.1%} for {chosen.recipe}"


def _search_encoders(options: PlanOptions, request: Request, card: Card, name: str) -> list[Candidate]:
    """Return every encoder's best recipe in the order of the table; the chosen encoder is traced first."""
    names = [name] if request.encoder else [name, *(other for other in TABLE_ENCODERS if other != name)]
    found: list[Candidate] = []
    with Live(tables.candidates_table(found, options.tiles, name), console=console, transient=True) as live:
        for number, encoder in enumerate(names, start=1):
            recipe = build_recipe(request, encoder)
            found.append(cached("planner.search.best_recipe.find_best", Candidate, recipe, card))
            pending = names[number] if number < len(names) else None
            live.update(tables.candidates_table(found, options.tiles, pending))
    return sorted(found, key=lambda candidate: (*TABLE_ENCODERS, name).index(candidate.recipe.encoder.name))


def _measure(options: PlanOptions, candidate: Candidate) -> Measurement | None:
    """Run the recipe's step on this machine and save the measurement with the prediction."""
    if not options.measure or not candidate.memory.fits:
        return None
    import torch

    from planner.evidence.measure import measure, measurement_row

    encoder = candidate.recipe.encoder.name
    try:
        with console.status(f"measuring {encoder} on this machine's first GPU"):
            measured = measure(candidate.recipe)
    except torch.OutOfMemoryError as error:
        reason = error_reason(error, 200)
        raise UserError(f"the plan does not hold: {encoder} ran out of memory ({reason})") from None
    memory = candidate.memory
    predicted = {"peak_reserved": memory.peak_reserved_bytes, "peak_allocated": memory.peak_allocated_bytes}
    append_row(measured_path(), measurement_row(measured, candidate.recipe, predicted))
    return measured
