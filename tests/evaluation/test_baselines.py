"""moco-eval: an encoder beside its baselines, labels that fit, the picture of neighbours."""

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from support.evaluation_fixtures import make_recipe, random_tiles
from support.source_files import encoded, pixels
from typer.testing import CliRunner

from moco_accel.checkpoints.checkpoint import State, write_checkpoint
from moco_accel.checkpoints.random_states import random_states
from moco_accel.common.errors import UserError
from moco_accel.evaluation.baselines import draw_judgement, judge, open_labelled, random_encoder
from moco_accel.evaluation.cli import app, merge_summary
from moco_accel.evaluation.neighbours_picture import Panel, choose_queries, draw_neighbours
from moco_accel.evaluation.report import verdict
from moco_accel.networks.encoders import build_encoder
from moco_accel.networks.moco import build_moco
from moco_accel.recipe.data_sections import Data
from moco_accel.sources.shard_writer import write_shards
from moco_accel.tiles.tiles import open_tiles
from moco_accel.training.optimizers import build_optimizer


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


CLASSES = ["dark", "bright"]


@pytest.fixture
def labelled_run(tmp_path):
    """A run's folder as training leaves it, and shards of dark and bright noise."""
    features = datasets.Features({"image": datasets.Array3D((3, 32, 32), "uint8")})
    features["label"] = datasets.ClassLabel(names=CLASSES)
    for side, count, seed in (("train", 24, 0), ("test", 12, 1)):
        noise = random_tiles(count, 32, seed=seed).numpy()
        tiles = [noise[i] // 4 + (150 if i % 2 else 0) for i in range(count)]
        rows = [{"image": tile.astype(np.uint8), "label": i % 2} for i, tile in enumerate(tiles)]
        write_shards(rows, features, tmp_path / side)
    recipe = make_recipe(32, evaluation={"train_source": str(tmp_path / "train"), "neighbours": 3})
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000001"
    torch.manual_seed(7)
    moco = build_moco(recipe)
    state = State(step=0, tile_count=100, reading="", processes=1, micro_batch_asked=1, versions={})
    write_checkpoint(checkpoint, recipe, state, moco, build_optimizer(recipe, moco), random_states()[None])
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
    assert "stored 0 to 255 → 0 to 1, less mean 0.485/0.456/0.406" in result.stderr
    assert "Pretraining did not beat" in result.stderr  # nothing beats a mean colour that is always right
    assert "plate carrée" not in result.stderr  # that is the demo's weakness, not this data's
    (labelled_run / "r [").mkdir()
    odd = (labelled_run / "run").rename(labelled_run / "r [" / "b]")  # rich would read [/b] as markup
    again = CliRunner().invoke(app, [str(odd), "--test-source", str(labelled_run / "test"), "--probe", "none"])
    assert again.exit_code == 0, again.stderr
    assert f"wrote {odd}/summary.json, neighbours.png, confusion.png, map.png\n" in again.stderr
    summary = json.loads((odd / "summary.json").read_text())
    assert summary["knn_top1"] == figures["knn_top1"]
    assert not [name for name in summary if name.startswith("linear_")]  # those of the call before are gone
    assert summary["evaluation_seeds"] == 1
    nowhere = CliRunner().invoke(app, [str(labelled_run / "nowhere")])
    assert nowhere.exit_code == 2
    assert "Example: moco-eval" in CliRunner().invoke(app, ["--help"]).stdout


def test_random_initialisation_is_the_recipes_seed_and_disturbs_nothing(labelled_run):
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
    # an encoder that is the random one scores as the random one does
    accuracies = judge(recipe, expected, open_labelled(recipe), "cpu").accuracies
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
            open_labelled(make_recipe(32, evaluation=sources))


def test_labelled_tiles_are_read_from_the_runs_column_or_the_only_one(tmp_path):
    two = datasets.Features({name: datasets.Array3D((3, 8, 8), "uint8") for name in ("image", "mask")})
    one = datasets.Features({"photo": datasets.Array3D((3, 8, 8), "uint8")})
    for features, folder in ((two, "two"), (one, "one")):
        features["label"] = datasets.ClassLabel(names=CLASSES)
        pixels = {name: np.full((3, 8, 8), len(name), np.uint8) for name in features if name != "label"}
        for side in ("train", "test"):
            write_shards([pixels | {"label": 0}], features, tmp_path / folder / side)

    def opened(column, folder):
        sources = {f"{side}_source": str(tmp_path / folder / side) for side in ("train", "test")}
        return open_labelled(make_recipe(evaluation=sources, data={"image_column": column})).test

    assert opened("mask", "two").image_column == "mask"
    assert opened("image", "one").image_column == "photo"
    with pytest.raises(UserError, match=r"has several columns of imagery \(image, mask\)"):
        opened("photo", "two")
    with pytest.raises(UserError, match=r"^data.image_column='label' of .* is ClassLabel"):
        opened("label", "one")  # what it says is wrong with it is not hidden by another column that works


SENTINEL2 = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12"]


def test_thirteen_bands_from_end_to_end(tmp_path):
    """Classes differ in one band alone, B11, which the mean colour of all bands sees and a picture of RGB does not."""
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
        data={"scaling": "reflectance", "bands": SENTINEL2, "image_column": "image"},  # named otherwise in training
        evaluation={f"{side}_source": str(tmp_path / side) for side in ("train", "test")}
        | {"neighbours": 3, "label_column": "class"},
    )
    labelled = open_labelled(recipe)
    assert labelled.names == ["soil", "water"]
    assert labelled.test_labels.tolist() == [1, 0] * 6
    assert labelled.train.bands == SENTINEL2
    judgement = judge(recipe, build_encoder(recipe.encoder), labelled, "cpu")
    assert judgement.accuracies["knn_top1_mean_colour"] == 1
    assert judgement.pretrained[0].shape == (24, 512)
    draw_judgement(tmp_path / "neighbours.png", recipe, judgement)
    query = choose_queries([1, 0] * 6)[0]
    stored = open_tiles(str(tmp_path / "test"), recipe.data.model_copy(update={"image_column": "msi"}), 13)[query]
    with Image.open(tmp_path / "neighbours.png") as picture:
        shown = np.array(picture)[108 : 108 + 128 : 4, 32 : 32 + 128 : 4].astype(float)  # 4 pixels to one
    for band, name in enumerate(("B4", "B3", "B2")):
        values = stored[SENTINEL2.index(name)].float().numpy()
        assert np.corrcoef(shown[:, :, band].ravel(), values.ravel())[0, 1] > 0.99


def test_queries_are_spread_over_classes_and_within_them():
    labels = [0] * 10 + [1] * 10 + [2] * 10
    assert choose_queries(labels, 3) == [5, 15, 25]
    assert choose_queries(labels, 6) == [3, 13, 23, 6, 16, 26]
    assert [labels[q] for q in choose_queries(labels, 8)] == [0, 1, 2, 0, 1, 2, 0, 1]
    many = [label for label in range(10) for _ in range(3)]
    assert [many[q] for q in choose_queries(many, 8)] == [0, 1, 3, 4, 5, 6, 8, 9]
    assert choose_queries([4, 4], 8) == [0, 0, 0, 0, 1, 1, 1, 1]


def shards(folder, tiles):
    features = datasets.Features({"image": datasets.Array3D(tuple(tiles.shape[1:]), "uint8")})
    write_shards([{"image": tile.numpy()} for tile in tiles], features, folder)
    return open_tiles(str(folder), Data(streaming=True), None)


@pytest.mark.parametrize(("bands", "size"), [(3, 32), (1, 9), (13, 200)])
def test_the_picture_frames_same_and_other_classes(tmp_path, bands, size):
    train, test = (shards(tmp_path / f"{count}", random_tiles(count, size, bands, seed=count)) for count in (6, 2))
    neighbours = torch.tensor([[0, 1, 2, 3, 4], [5, 4, 3, 2, 1]])
    labels, panels = ([0, 1, 0, 1, 0, 1], [0, 1]), [Panel("pretrained", neighbours), Panel("random", neighbours)]
    names = ["sea", "a class with a name that is much too long for a tile"]
    path = tmp_path / "deep" / "neighbours.png"
    draw_neighbours(path, train, test, labels, names, [0, 1], panels, "caption")
    with Image.open(path) as picture:
        green, red, ink = (31, 157, 99), (216, 67, 59), (29, 39, 51)
        frame = [picture.getpixel((29 + (0 if n == 0 else 176 + (n - 1) * 144), 106)) for n in range(6)]
        assert frame == [ink, green, red, green, red, green]
        if bands == 3:  # a tile of 32 pixels is enlarged by 4, without smoothing
            assert picture.getpixel((28 + 4 + 1, 104 + 4 + 1)) == tuple(test[0][:, 0, 0].tolist())
    assert [p.name for p in path.parent.iterdir()] == ["neighbours.png"]


def test_summary_is_merged(tmp_path):
    path = tmp_path / "summary.json"
    merge_summary(path, {"knn_top1": 0.5})
    path.write_text(json.dumps({"steps": 7, "knn_top1": 0.1}))
    merge_summary(path, {"knn_top1": 0.6})
    assert json.loads(path.read_text()) == {"steps": 7, "knn_top1": 0.6}
    path.write_text("{half")
    with pytest.raises(UserError, match="is not JSON"):
        merge_summary(path, {})
    assert path.read_text() == "{half"


def test_the_verdict_is_plain():
    won = {"knn_top1": 0.8, "knn_top1_random_init": 0.6, "knn_top1_mean_colour": 0.75}
    won |= {"knn_top1_grey": 0.6, "knn_top1_grey_random_init": 0.4}
    assert verdict(won) == (
        "Pretraining beats random initialisation in colour, the mean colour and random initialisation on grey tiles."
    )
    assert verdict(won | {"knn_top1_mean_colour": 0.8}) == "Pretraining did not beat the mean colour."
    linear = {"linear_top1": 0.8, "linear_top1_random_init": 0.76, "linear_top1_mean_colour": 0.7}
    seeds = {"linear_top1": [0.7, 0.9], "linear_top1_random_init": [0.7, 0.82]}  # leads 0 and 0.08: 0.04 ± 0.057
    seeds["linear_top1_mean_colour"] = [0.61, 0.79]  # leads 0.09 and 0.11: 0.1 ± 0.014, though the seeds differ by 0.2
    assert verdict(linear, seeds) == (
        "Pretraining beats the mean colour under a linear probe. "
        "Its lead over random initialisation under a linear probe is within one standard deviation."
    )


def test_tiles_that_would_vote_for_themselves_are_refused(tmp_path):
    folder, link = tmp_path / "labelled", tmp_path / "link"
    row = {"image": encoded(pixels(1, size=16)[0]), "label": 0}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["sea"])})
    write_shards([row], features, folder)
    link.symlink_to(folder)
    for again in (str(folder), f"{folder}/", f"{folder}/*.parquet", str(link), f"{folder}/../labelled"):
        sources = {"train_source": str(folder), "test_source": again}
        with pytest.raises(UserError, match=r"holds tiles of evaluation.train_source=.*: each would vote for itself"):
            open_labelled(make_recipe(evaluation=sources))
