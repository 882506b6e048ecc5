"""From a question to an answer: find the card, search, report, write the recipe. Imports torch only where it must."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.live import Live
from rich.markup import escape

from moco_accel.common.console import console
from moco_accel.common.errors import UserError
from moco_accel.recipe.hardware_sections import Hardware
from moco_accel.recipe.launch_command import FIRST_NODE, launch_command
from moco_accel.recipe.load import load_recipe, save_recipe
from moco_accel.recipe.schema import Recipe
from planner.answer import reasons, report, step_report
from planner.answer.answer_json import Answer, as_json
from planner.answer.cache import answered
from planner.answer.launch import launch_lines, write_job
from planner.answer.recipe_header import header
from planner.answer.request import (
    DEFAULT_ENCODER,
    TABLE_ENCODERS,
    Request,
    check,
    check_fleet,
    check_nodes,
    check_place,
    check_writable,
    few_steps,
    recipe_for,
    recipe_path,
)
from planner.cards.devices import Card, cards_of_this_machine
from planner.cards.fleet import Fleet, fleet
from planner.memory.candidate import Candidate, Changes, PapersWay, Retraced, planned
from planner.memory.evidence import all_rows, standing

if TYPE_CHECKING:  # it imports torch
    from planner.memory.measure import Measured


@dataclass(frozen=True)
class Question:
    """The command line. What `request` does not say (cards, precision) the cards decide."""

    request: Request
    gpu: str | None = None
    vram: str | None = None
    gpus: int | None = None
    recipe_file: Path | None = None
    output: Path | None = None
    tiles: int | None = None
    as_json: bool = False
    save: Path | None = None
    measure: bool = False
    nodes: int | None = None
    slurm: Path | None = None


def answer(question: Question) -> int:
    """Answer on stderr (and, as JSON, on stdout). Returns the exit code; raises UserError for the user's mistakes."""
    report.check_picture(question.save)
    if question.slurm is not None:
        check_writable("--slurm", question.slurm, "job.sbatch")
    recipe = load_recipe(question.recipe_file) if question.recipe_file is not None else None
    check_nodes(question.nodes, recipe, question.recipe_file)
    cards = _cards(question, recipe)
    page = report.Page()
    if cards is None:
        check(question.request, question.tiles)
        if recipe is None and question.slurm is not None:
            raise UserError(f"--slurm={question.slurm} is for GPUs or a recipe that are named; --vram 8 names one")
        from planner.answer.without_gpu import without_gpu

        code = without_gpu(recipe, question.recipe_file, question.as_json, page)
        if recipe is not None and code == 0:
            page.show(*write_job(question.slurm, recipe, str(question.recipe_file)))
    elif recipe is not None:
        code = judge(question, recipe, cards, page)
    else:
        code = plan(question, _completed(question, cards), cards, page)
    if question.save is not None:
        page.save(question.save)
        console.print(f"The report is in {escape(str(question.save))}", soft_wrap=True)
    return code


def plan(question: Question, request: Request, cards: Fleet, page: report.Page) -> int:
    """The table of encoders, the chosen one's budget, and its recipe written."""
    card, name = cards.deciding, request.encoder or DEFAULT_ENCODER
    check(request, question.tiles)
    first = recipe_for(request, name)  # the mistakes that need no torch come before it is imported
    if request.mixed_precision == "bf16" and not card.bf16:
        raise UserError(f"--precision=bf16: {card.name} computes in fp16 only; --precision fp16 works")
    place = question.output or Path(recipe_path(request, card.marketed_gib))
    check_place(place, first, question.output is None)
    page.show(report.hardware(cards), f"\n{report.asked_for(first)}")
    found = _table(question, request, card, name)
    chosen = next(candidate for candidate in found if candidate.recipe.encoder.name == name)
    page.show(
        report.candidates_table(found, question.tiles), *reasons.why_not(found, chosen), *reasons.divided(chosen), ""
    )
    page.show(*report.budget(chosen))
    with console.status("tracing the paper's own way"):
        way = answered("planner.memory.estimate.papers_way", PapersWay, chosen.recipe, card)
    page.show(report.papers_way(chosen, way), step_report.operations(chosen), *step_report.sending(chosen))
    _warn(page, chosen, question.tiles)
    measured = path = None
    if chosen.memory.fits:
        _trace_again(page, chosen, card)
        measured = _measured(question, chosen)
        path = str(place)
        ready = planned(chosen, measured.gpu if measured else None)
        command = launch_command(ready.hardware, path)
        save_recipe(ready, path, header(chosen.recipe, command, standing(card, all_rows())))
    return _close(question, page, cards, Answer(found, chosen, path, measured, way))


def judge(question: Question, recipe: Recipe, cards: Fleet, page: report.Page) -> int:
    """Does a recipe fit a card, as it is?"""
    check_fleet(cards, recipe, question.recipe_file)
    card = cards.deciding
    page.show(report.hardware(cards), f"\n{report.asked_for(recipe)}")
    with console.status(f"tracing {recipe.encoder.name}"):
        candidate = answered("planner.memory.estimate.judge", Candidate, recipe, card)
    page.show(report.candidates_table([candidate], question.tiles), "", *report.budget(candidate))
    page.show(*reasons.beside_plan(recipe, candidate))
    page.show(step_report.operations(candidate), *step_report.sending(candidate))
    _warn(page, candidate, question.tiles)
    measured = _measured(question, candidate)
    return _close(question, page, cards, Answer([candidate], candidate, str(question.recipe_file), measured))


def _close(question: Question, page: report.Page, cards: Fleet, answer: Answer) -> int:
    """What both kinds of answer end with: what fits or would, how sure that is, the recipe and its command."""
    card, chosen, rows = cards.deciding, answer.chosen, all_rows()
    if not chosen.memory.fits:
        with console.status("looking for what would fit"):
            changes = answered("planner.answer.advice.changes", Changes, chosen.recipe, card)
        answer = dataclasses.replace(answer, changes=changes)
        page.show(*reasons.does_not_fit(chosen, changes))
    if answer.measured is not None:
        page.show(report.beside_measured(chosen, answer.measured))
    page.show(*reasons.how_sure(answer.found, card, rows))
    if chosen.memory.fits:
        hardware, path = chosen.recipe.hardware, str(answer.path)
        nodes = f", and on each node, {FIRST_NODE} being the first's address:" if hardware.num_nodes > 1 else ""
        page.show(
            f"Recipe: [bold]{escape(path)}[/]{nodes}",
            *(f"[bold green]{escape(line)}[/]" for line in launch_lines(hardware, path)),
        )
        page.show(*write_job(question.slurm, chosen.recipe, path))
        answer = dataclasses.replace(answer, job=None if question.slurm is None else str(question.slurm))
    if question.as_json:
        print(as_json(cards, answer, rows))
    return 0 if chosen.memory.fits else 1


def _warn(page: report.Page, chosen: Candidate, tiles: int | None) -> None:
    recipe = chosen.recipe
    few = few_steps(recipe.batch.global_batch_size, recipe.hardware.num_devices, tiles)
    warnings = [words for words in (few, reasons.coarse(chosen)) if words]
    page.show(*(f"[bold yellow]warning:[/] {words}" for words in warnings))


def _trace_again(page: report.Page, chosen: Candidate, card: Card) -> None:
    """Check what was scaled at the size it was scaled to. No recipe is written on a figure that does not hold."""
    checked = answered("planner.answer.search.retraced", Retraced, chosen.recipe, card).difference
    page.show(f"Traced again at this micro-batch size: {checked:+.1%} from the table's figure.")
    allowed = max(chosen.memory.off_share, card.headroom_bytes / chosen.memory.peak_reserved_bytes)
    assert abs(checked) < allowed, f"scaling is off by {checked:+.1%} for {chosen.recipe}"


def _table(question: Question, request: Request, card: Card, name: str) -> list[Candidate]:
    """Every encoder's best recipe, the chosen one's first to appear; in the table's order."""
    names = [name] if request.encoder else [name, *(other for other in TABLE_ENCODERS if other != name)]
    found: list[Candidate] = []
    with Live(report.candidates_table(found, question.tiles, name), console=console, transient=True) as live:
        for place, encoder in enumerate(names, start=1):
            found.append(answered("planner.answer.search.best", Candidate, recipe_for(request, encoder), card))
            waiting = names[place] if place < len(names) else None
            live.update(report.candidates_table(found, question.tiles, waiting))
    return sorted(found, key=lambda candidate: (*TABLE_ENCODERS, name).index(candidate.recipe.encoder.name))


def _cards(question: Question, recipe: Recipe | None) -> Fleet | None:
    """The cards named on the command line, else the recipe's, else this machine's; None if it has none."""
    if question.measure and (question.gpu or question.vram):
        raise UserError("--measure runs on the GPUs of this machine; leave --gpu and --vram out")
    gpus, nodes = question.gpus, question.nodes or 1
    if recipe is not None:
        nodes = recipe.hardware.num_nodes
        gpus = recipe.hardware.num_devices // nodes if gpus is None else gpus
    named = fleet(question.gpu, question.vram, gpus, nodes)
    if named is None and recipe is not None and recipe.hardware.vram_gib is not None and not question.measure:
        named = _cards_of(recipe.hardware, gpus)
    if named is not None:
        return named
    here = cards_of_this_machine()
    if question.measure and not here:
        from planner.memory.measure import NO_GPU

        raise UserError(NO_GPU)
    if here and question.gpus is not None and question.gpus > len(here):
        raise UserError(
            f"--gpus={question.gpus} but this machine has {len(here)}; --gpus {len(here)} works, or name what another "
            "machine has: --vram 8"
        )
    return Fleet(tuple(here[: gpus or len(here)]), nodes) if here else None


def _cards_of(hardware: Hardware, gpus: int | None) -> Fleet | None:
    """The cards that a recipe was planned for; by their size where their name isn't known."""
    vram = f"{hardware.vram_gib:g}"
    try:
        return fleet(hardware.gpu, vram, gpus, hardware.num_nodes)
    except UserError:
        return fleet(None, vram, gpus, hardware.num_nodes)


def _completed(question: Question, cards: Fleet) -> Request:
    """The request, with what the cards decide."""
    card = cards.deciding
    return dataclasses.replace(
        question.request,
        gpus=len(cards.cards),
        nodes=cards.num_nodes,
        vram_gib=card.marketed_gib,
        gpu=card.name if card.product else None,
        mixed_precision=question.request.mixed_precision or card.precision,
    )


def _measured(question: Question, candidate: Candidate) -> Measured | None:
    """Run the recipe's step here, and remember what it took beside what was predicted."""
    if not question.measure or not candidate.memory.fits:
        return None
    import torch

    from planner.memory.measure import measure, remember

    try:
        with console.status(f"measuring {candidate.recipe.encoder.name} on this machine's first GPU"):
            measured = measure(candidate.recipe)
    except torch.OutOfMemoryError as error:
        short = " ".join(str(error).split())[:200]
        raise UserError(
            f"the plan does not hold: {candidate.recipe.encoder.name} ran out of memory ({short})"
        ) from None
    memory = candidate.memory
    predicted = {"peak_reserved": memory.peak_reserved_bytes, "peak_allocated": memory.peak_allocated_bytes}
    remember(measured, candidate.recipe, predicted)
    return measured
