"""moco-eval from end to end: an encoder and its baselines, labels that fit, the verdict."""

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from support.evaluation_fixtures import compare_on_fixed_split, make_recipe, random_tiles, write_run
from support.source_files import image_value, random_pixels
from typer.testing import CliRunner

from moco_accel.common.errors import UserError
from moco_accel.evaluation.baselines import random_encoder
from moco_accel.evaluation.cli import app
from moco_accel.evaluation.labelled_tiles import open_labelled_tiles
from moco_accel.evaluation.neighbours_picture import choose_queries, draw_neighbours
from moco_accel.evaluation.report import update_summary, verdict
from moco_accel.networks.encoders import build_encoder
from moco_accel.sources.shard_writer import write_shards
from moco_accel.tiles.tiles import open_tiles


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


CLASSES = ["dark", "bright"]


@pytest.fixture
def labelled_run(tmp_path):
    """A run's folder as written by training, and shards of dark and bright noise."""
    features = datasets.Features({"image": datasets.Array3D((3, 32, 32), "uint8")})
    features["label"] = datasets.ClassLabel(names=CLASSES)
    for side, count, seed in (("train", 24, 0), ("test", 12, 1)):
        noise = random_tiles(count, 32, seed=seed).numpy()
        tiles = [noise[i] // 4 + (150 if i % 2 else 0) for i in range(count)]
        rows = [{"image": tile.astype(np.uint8), "label": i % 2} for i, tile in enumerate(tiles)]
        write_shards(rows, features, tmp_path / side)
    evaluation = {"train_source": str(tmp_path / "train"), "neighbours": 3}
    write_run(tmp_path / "run", make_recipe(32, evaluation=evaluation))
    (tmp_path / "run" / "latest").write_text("step_00000001\n")
    (tmp_path / "run" / "summary.json").write_text('{"steps": 1}')
    return tmp_path


def test_command_line(labelled_run):
    run = str(labelled_run / "run")
    missing = CliRunner().invoke(app, [run])
    assert missing.exit_code == 2
    assert "evaluation.test_source=null" in missing.stderr
    result = CliRunner().invoke(app, [run, "--test-source", str(labelled_run / "test"), "--json"])
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["confusion"]["knn"][0][0] + printed["confusion"]["knn"][0][1] == 6  # dark test tiles
    assert printed["classes"] == CLASSES
    assert printed["per_seed"]["linear_top1_mean_colour"] == [1, 1, 1]
    assert printed["preprocessing"]["low"] == [0, 0, 0]
    details = {"classes", "confusion", "per_seed", "preprocessing"}
    figures = {name: value for name, value in printed.items() if name not in details}
    encoders, baselines = ("", "_random_init"), ("", "_random_init", "_mean_colour")
    metrics = ("top1", "balanced")
    assert set(figures) == {
        *(f"knn_{metric}{name}" for metric in metrics for name in baselines),
        *(f"knn_{metric}_grey{name}" for metric in metrics for name in encoders),
        *(f"linear_{metric}{name}{what}" for metric in metrics for name in baselines for what in ("", "_sd")),
        *(f"knn_{name}" for name in ("train_tiles", "test_tiles", "classes", "neighbours")),
        *(f"evaluation_{name}" for name in ("data", "split", "seeds", "probe", "left_out_tiles")),
        *(f"evaluation_{kind}_copies" for kind in ("exact", "near")),
        "linear_strengths",
    }
    assert (figures["knn_train_tiles"], figures["knn_test_tiles"], figures["knn_classes"]) == (24, 12, 2)
    assert figures["knn_top1_mean_colour"] == figures["linear_top1_mean_colour"] == 1
    assert (figures["evaluation_split"], figures["evaluation_seeds"]) == ("given", 3)
    assert json.loads((labelled_run / "run/summary.json").read_text()) == {"steps": 1, **figures}
    for name in ("neighbours", "confusion", "map"):
        with Image.open(labelled_run / f"run/{name}.png") as picture:
            assert min(picture.size) > 300
    assert "values 0 to 255 scaled to 0 to 1, minus mean 0.485/0.456/0.406" in result.stderr
    assert "Pretraining does not beat" in result.stderr  # the mean colour is always right
    assert "plate carrée" not in result.stderr  # a limitation of the demo data alone
    (labelled_run / "r [").mkdir()
    odd = (labelled_run / "run").rename(labelled_run / "r [" / "b]")  # rich would read [/b] as markup
    again = CliRunner().invoke(app, [str(odd), "--test-source", str(labelled_run / "test"), "--probe", "none"])
    assert again.exit_code == 0, again.stderr
    assert f"wrote {odd}/summary.json, neighbours.png, confusion.png, map.png\n" in again.stderr
    summary = json.loads((odd / "summary.json").read_text())
    assert summary["knn_top1"] == figures["knn_top1"]
    assert not [name for name in summary if name.startswith("linear_")]  # those of the earlier call are removed
    assert summary["evaluation_seeds"] == 1
    nowhere = CliRunner().invoke(app, [str(labelled_run / "nowhere")])
    assert nowhere.exit_code == 2
    assert "Example: moco-eval" in CliRunner().invoke(app, ["--help"]).stdout


def test_random_initialisation_uses_the_recipes_seed_and_keeps_the_global_state(labelled_run):
    recipe = make_recipe(
        32,
        evaluation={f"{side}_source": str(labelled_run / side) for side in ("train", "test")} | {"neighbours": 3},
        run={"seed": 5},
    )
    torch.manual_seed(5)
    expected = build_encoder(recipe.encoder)
    before = torch.get_rng_state()
    found = random_encoder(recipe)
    assert torch.equal(torch.get_rng_state(), before)
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    # the random encoder as pretrained encoder has the accuracies of the baseline
    accuracies = compare_on_fixed_split(recipe, expected).accuracies
    assert accuracies["knn_top1"] == accuracies["knn_top1_random_init"]
    assert accuracies["knn_top1_grey"] == accuracies["knn_top1_grey_random_init"]


def test_labels_that_do_not_fit_are_refused(labelled_run):
    features = datasets.Features({"image": datasets.Array3D((3, 32, 32), "uint8")})
    pixels = np.zeros((3, 32, 32), np.uint8)
    features["label"] = datasets.ClassLabel(names=["other"])
    write_shards([{"image": pixels, "label": 0}], features, labelled_run / "other")
    features["label"] = datasets.ClassLabel(names=CLASSES)
    write_shards([{"image": pixels, "label": -1}], features, labelled_run / "unlabelled")
    features["label"] = datasets.Value("int64")
    for name, labels in (("nulls", [0, None]), ("minus", [1, -1]), ("none", [None, -1])):
        write_shards([{"image": pixels, "label": label} for label in labels], features, labelled_run / name)
    empty = dict.fromkeys(("unlabelled", "nulls", "minus", "none"), "is empty or negative for some tiles")
    for test, reason in ({"other": "classes differ"} | empty).items():
        sources = {"train_source": str(labelled_run / "train"), "test_source": str(labelled_run / test)}
        with pytest.raises(UserError, match=reason):
            open_labelled_tiles(make_recipe(32, evaluation=sources))


def test_labelled_tiles_are_read_from_the_column_of_the_run_or_the_only_one(tmp_path):
    two = datasets.Features({name: datasets.Array3D((3, 8, 8), "uint8") for name in ("image", "night")})
    one = datasets.Features({"photo": datasets.Array3D((3, 8, 8), "uint8")})
    for features, folder in ((two, "two"), (one, "one")):
        features["label"] = datasets.ClassLabel(names=CLASSES)
        pixels = {name: np.full((3, 8, 8), len(name), np.uint8) for name in features if name != "label"}
        for side in ("train", "test"):
            write_shards([pixels | {"label": 0}], features, tmp_path / folder / side)

    def opened(column, folder):
        sources = {f"{side}_source": str(tmp_path / folder / side) for side in ("train", "test")}
        return open_labelled_tiles(make_recipe(evaluation=sources, data={"image_column": column})).sources[1]

    assert opened("night", "two").image_column == "night"
    assert opened("image", "one").image_column == "photo"
    with pytest.raises(UserError, match=r"has several image columns \(image, night\)"):
        opened("photo", "two")
    with pytest.raises(UserError, match=r"^data.image_column='label' of .* is ClassLabel"):
        opened("label", "one")  # although another column works


SENTINEL2 = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12"]


def test_thirteen_bands_from_end_to_end(tmp_path):
    """Classes differ only in band B11, which is part of the mean colour of all bands but not of an RGB picture."""
    features = datasets.Features({"msi": datasets.Array3D((32, 32, 13), "uint16"), "class": datasets.Value("string")})
    generator = np.random.default_rng(0)
    for side, count in (("train", 24), ("test", 12)):
        tiles = generator.integers(1000, 1200, (count, 32, 32, 13)).astype(np.uint16)
        tiles[1::2, :, :, SENTINEL2.index("B11")] += 2000
        rows = [{"msi": tile, "class": ["water", "soil"][i % 2]} for i, tile in enumerate(tiles)]
        write_shards(rows, features, tmp_path / side)
    recipe = make_recipe(
        32,
        13,
        data={"scaling": "reflectance", "bands": SENTINEL2, "image_column": "image"},  # has another name in training
        evaluation={f"{side}_source": str(tmp_path / side) for side in ("train", "test")}
        | {"neighbours": 3, "label_column": "class"},
    )
    labelled = open_labelled_tiles(recipe)
    assert labelled.names == ["soil", "water"]
    assert labelled.labels.tolist() == [1, 0] * 18
    assert labelled.bands == SENTINEL2
    comparison = compare_on_fixed_split(recipe, build_encoder(recipe.encoder))
    assert comparison.accuracies["knn_top1_mean_colour"] == 1
    assert comparison.split_features("")[0].shape == (24, 512)
    draw_neighbours(tmp_path / "neighbours.png", recipe, comparison)
    query = choose_queries([1, 0] * 6)[0]
    stored = open_tiles(str(tmp_path / "test"), recipe.data.model_copy(update={"image_column": "msi"}), 13)[query]
    with Image.open(tmp_path / "neighbours.png") as picture:
        shown = np.array(picture)[108 : 108 + 128 : 4, 32 : 32 + 128 : 4].astype(float)  # tiles are enlarged by 4
    for band, name in enumerate(("B4", "B3", "B2")):
        values = stored[SENTINEL2.index(name)].float().numpy()
        assert np.corrcoef(shown[:, :, band].ravel(), values.ravel())[0, 1] > 0.99


def test_summary_keeps_other_entries(tmp_path):
    path = tmp_path / "summary.json"
    update_summary(path, {"knn_top1": 0.5})
    path.write_text(json.dumps({"steps": 7, "knn_top1": 0.1}))
    update_summary(path, {"knn_top1": 0.6})
    assert json.loads(path.read_text()) == {"steps": 7, "knn_top1": 0.6}
    path.write_text("{half")
    with pytest.raises(UserError, match="is not JSON"):
        update_summary(path, {})
    assert path.read_text() == "{half"


def test_the_verdict_lists_baselines():
    won = {"knn_top1": [0.8], "knn_top1_random_init": [0.6], "knn_top1_mean_colour": [0.75]}
    won |= {"knn_top1_grey": [0.6], "knn_top1_grey_random_init": [0.4]}
    assert verdict(won) == (
        "Pretraining beats random initialisation (kNN), the mean colour (kNN) and "
        "random initialisation on grey tiles (kNN)."
    )
    assert verdict(won | {"knn_top1_mean_colour": [0.8]}) == "Pretraining does not beat the mean colour (kNN)."
    seeds = {"linear_top1": [0.7, 0.9], "linear_top1_random_init": [0.7, 0.82]}  # leads 0 and 0.08: 0.04 ± 0.057
    seeds["linear_top1_mean_colour"] = [0.61, 0.79]  # leads 0.09 and 0.11: 0.1 ± 0.014, though the seeds differ by 0.2
    assert verdict(seeds) == (
        "Pretraining beats the mean colour (linear probe). "
        "The lead over random initialisation (linear probe) is within one standard deviation."
    )


def test_sources_that_share_tiles_are_refused(tmp_path):
    folder, link = tmp_path / "labelled", tmp_path / "link"
    row = {"image": image_value(random_pixels(1, size=16)[0]), "label": 0}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["sea"])})
    write_shards([row], features, folder)
    link.symlink_to(folder)
    for again in (str(folder), f"{folder}/", f"{folder}/*.parquet", str(link), f"{folder}/../labelled"):
        sources = {"train_source": str(folder), "test_source": again}
        with pytest.raises(
            UserError, match=r"shares tiles with evaluation.train_source=.*: each would be its own nearest"
        ):
            open_labelled_tiles(make_recipe(evaluation=sources))
