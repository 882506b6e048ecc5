"""Find the cards to plan for: named on the command line, in the recipe, or in this machine."""

from __future__ import annotations

import dataclasses

from moco_accel.common.errors import UserError
from moco_accel.recipe.hardware_sections import Hardware
from moco_accel.recipe.schema import Recipe
from planner.answer.request import PlanOptions, Request
from planner.cards.fleet import Fleet, parse_fleet
from planner.cards.local import local_cards


def find_cards(options: PlanOptions, recipe: Recipe | None) -> Fleet | None:
    """Return the cards named on the command line, else the recipe's, else those of this machine.

    Returns:
        None if none are named and this machine has no GPU.

    Raises:
        UserError: If the options contradict each other, the recipe or this machine.
    """
    if options.measure and (options.gpu or options.vram):
        raise UserError("--measure runs on the GPUs of this machine; omit --gpu and --vram")
    gpus, nodes = options.gpus, options.nodes or 1
    if recipe is not None:
        nodes = recipe.hardware.num_nodes
        gpus = recipe.hardware.num_devices // nodes if gpus is None else gpus
    named = parse_fleet(options.gpu, options.vram, gpus, nodes)
    if named is None and recipe is not None and recipe.hardware.vram_gib is not None and not options.measure:
        named = _cards_of_recipe(recipe.hardware, gpus)
    if named is not None:
        return named
    found = local_cards()
    if options.measure and not found:
        from planner.evidence.measure import NO_GPU

        raise UserError(NO_GPU)
    if found and options.gpus is not None and options.gpus > len(found):
        raise UserError(
            f"--gpus={options.gpus} but this machine has {len(found)}; --gpus {len(found)} works, or name the GPUs of "
            "another machine: --vram 8"
        )
    return Fleet(tuple(found[: gpus or len(found)]), nodes) if found else None


def _cards_of_recipe(hardware: Hardware, gpus: int | None) -> Fleet | None:
    """Return the cards that a recipe was planned for, by size if their name is not known."""
    vram = f"{hardware.vram_gib:g}"
    try:
        return parse_fleet(hardware.gpu, vram, gpus, hardware.num_nodes)
    except UserError:
        return parse_fleet(None, vram, gpus, hardware.num_nodes)


def complete_request(request: Request, cards: Fleet) -> Request:
    """Return the request with the fields that the cards determine."""
    card = cards.limiting
    return dataclasses.replace(
        request,
        gpus=len(cards.cards),
        nodes=cards.num_nodes,
        vram_gib=card.marketed_gib,
        gpu=card.name if card.product else None,
        mixed_precision=request.mixed_precision or card.precision,
    )
