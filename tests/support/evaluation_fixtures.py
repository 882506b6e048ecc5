"""A small recipe to judge by, and tiles of noise."""

import torch

from moco_accel.recipe.load import recipe_from_dict


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
