"""A small recipe, random tiles, a run with a checkpoint, and a comparison with baselines."""

import torch

from moco_accel.checkpoints.checkpoint import TrainerState, write_checkpoint
from moco_accel.checkpoints.saver import random_states
from moco_accel.evaluation.baselines import compare_with_baselines, extract_all_features
from moco_accel.evaluation.labelled_tiles import open_labelled_tiles
from moco_accel.networks.moco import build_moco
from moco_accel.recipe.load import recipe_from_dict
from moco_accel.training.optimizers import build_optimizer


def make_recipe(image_size=8, bands=3, **sections):
    statistics = {"mean": [0.4] * bands, "std": [0.2] * bands} if bands != 3 else {}
    return recipe_from_dict(
        {
            "encoder": {"name": "resnet10", "image_size": image_size, "bands": bands},
            "batch": {"global_batch_size": 256, "micro_batch_size": 256, "accumulation_steps": 1},
            "optimizer": {"lr": 1.5e-4},
            **sections,
            "data": statistics | sections.get("data", {}),
        }
    )


def random_tiles(count, size=8, bands=3, seed=0):
    return torch.randint(0, 256, (count, bands, size, size), generator=torch.Generator().manual_seed(seed)).byte()


def write_run(run, recipe):
    """Write a run's folder with a checkpoint of random networks."""
    torch.manual_seed(7)
    moco = build_moco(recipe)
    state = TrainerState(step=0, tile_count=100, reading="", processes=1, micro_batch_asked=1, versions={})
    checkpoint = run / "checkpoints" / "step_00000001"
    write_checkpoint(checkpoint, recipe, state, moco, build_optimizer(recipe, moco), random_states()[None])


def compare_on_fixed_split(recipe, encoder):
    """Compare the encoder with its baselines by kNN, on the recipe's training and test tiles."""
    pool = open_labelled_tiles(recipe)
    extracted = extract_all_features(recipe, encoder, pool, "cpu")
    return compare_with_baselines(recipe, extracted, pool, [pool.split_by_source()])
