import json
import math

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from moco_accel import evaluation
from moco_accel.encoders import build_encoder
from moco_accel.eval_cli import app, merge_summary, verdict
from moco_accel.evaluation import (
    extract_features,
    knn_accuracy,
    mean_colour_features,
    nearest_neighbours,
    to_grey,
)
from moco_accel.imagery.shard_writer import write_shards
from moco_accel.judgement import draw_judgement, judge, open_labelled, random_encoder
from moco_accel.neighbours import Panel, choose_queries, draw_neighbours
from moco_accel.reading.decoding import DamagedTile
from moco_accel.reading.tiles import open_tiles
from moco_accel.recipe import recipe_from_dict, save_recipe
from moco_accel.recipe_text import RecipeError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


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


def naive_knn(train, train_labels, test, test_labels, k, temperature, classes):
    """Wu et al. 2018, section 3.4, one number at a time."""
    right = 0
    for query, truth in zip(test.tolist(), test_labels.tolist(), strict=True):
        similarities = []
        for index, key in enumerate(train.tolist()):
            dot = sum(a * b for a, b in zip(query, key, strict=True))
            similarities.append((dot / math.hypot(*query) / math.hypot(*key), index))
        votes = [0.0] * classes
        for similarity, index in sorted(similarities, reverse=True)[:k]:
            votes[train_labels[index]] += math.exp(similarity / temperature)
        right += votes.index(max(votes)) == truth
    return right / len(test)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (1000, 0.07)])
def test_knn_is_that_of_wu_et_al(monkeypatch, k, temperature):
    monkeypatch.setattr(evaluation, "_QUERIES_AT_ONCE", 7)  # several chunks, the last one short
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 4, (60,), generator=generator)
    train = torch.randn(60, 5, generator=generator) + 0.7 * nn.functional.one_hot(labels, 5)
    truth = torch.randint(0, 4, (40,), generator=generator)
    test = torch.randn(40, 5, generator=generator) + 0.7 * nn.functional.one_hot(truth, 5)
    ours = knn_accuracy(train, labels, test, truth, k, temperature, num_classes=4)
    assert ours == naive_knn(train, labels, test, truth, k, temperature, 4)
    assert 0.25 < ours < 1


def test_closer_neighbours_outvote_more_neighbours_only_at_low_temperature():
    train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])  # cosines 1, 0.6, 0.6
    arguments = (train, torch.tensor([0, 1, 1]), torch.tensor([[2.0, 0.0]]), torch.tensor([0]), 3)
    # exp(0.4 / T) against 2: the one wins for T < 0.4 / ln 2 = 0.577
    assert knn_accuracy(*arguments, temperature=0.57, num_classes=2) == 1
    assert knn_accuracy(*arguments, temperature=0.58, num_classes=2) == 0


def test_euclidean_votes_see_brightness_and_weigh_the_same():
    dark, bright = torch.tensor([[0.1, 0.1]]), torch.tensor([[0.9, 0.9]])
    train, labels = torch.cat([dark, bright]), torch.tensor([0, 1])
    test, truth = torch.tensor([[0.2, 0.2], [0.8, 0.8]]), torch.tensor([0, 1])
    assert knn_accuracy(train, labels, test, truth, 1, num_classes=2, metric="euclidean") == 1
    votes = torch.tensor([[0.2], [0.5], [0.5]]), torch.tensor([0, 1, 1])
    assert knn_accuracy(*votes, torch.tensor([[0.2]]), torch.tensor([1]), 3, num_classes=2, metric="euclidean") == 1


def test_knn_without_tiles_is_an_error():
    with pytest.raises(ValueError, match="0 to learn from, 2 to test"):
        knn_accuracy(torch.zeros(0, 3), torch.zeros(0).long(), torch.zeros(2, 3), torch.zeros(2).long(), num_classes=1)


def test_nearest_neighbours_come_nearest_first():
    train = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert nearest_neighbours(train, torch.tensor([[5.0, 1.0]]), 3).tolist() == [[1, 2, 0]]
    assert nearest_neighbours(train, torch.tensor([[0.0, 0.9]]), 2, "euclidean").tolist() == [[0, 2]]


def test_features_see_the_pixels_of_training():
    recipe, tiles = make_recipe(), random_tiles(10)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in recipe.normalisation)
    heard = []
    ours = extract_features(nn.Flatten(), tiles, recipe, "cpu", batch_size=4, on_progress=heard.append)
    assert heard == [4, 4, 2]
    assert ours.dtype == torch.float32
    assert torch.equal(ours, ((tiles.float() / 255 - mean) / std).flatten(1))


def test_grey_features_know_no_colour():
    recipe = make_recipe()
    red_and_equally_bright_grey = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    red_and_equally_bright_grey[0, 0] = 200
    red_and_equally_bright_grey[1] = 60  # 0.299 * 200 = 59.8
    colour = extract_features(nn.Flatten(), red_and_equally_bright_grey, recipe, "cpu")
    grey = extract_features(nn.Flatten(), red_and_equally_bright_grey, recipe, "cpu", grey=True)
    assert (colour[0] - colour[1]).abs().max() > 2
    assert (grey[0] - grey[1]).abs().max() < 0.005  # 0.2 / 255 / 0.225 = 0.0035
    pixels = torch.rand(13, 4, 4)
    assert torch.allclose(to_grey(pixels), pixels.mean(0, keepdim=True).expand(13, 4, 4), atol=1e-6)


def test_tiles_of_any_size_are_resized():
    recipe = make_recipe()
    tiles = [random_tiles(1, size)[0] for size in (8, 16, 5)]
    features = extract_features(nn.Flatten(), tiles, recipe, "cpu")
    assert features.shape == (3, 3 * 8 * 8)
    flat = [torch.full((3, 20, 30), 51, dtype=torch.uint8)]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in recipe.normalisation)
    expected = ((0.2 - mean) / std).expand(3, 8, 8).flatten()
    assert torch.allclose(extract_features(nn.Flatten(), flat, recipe, "cpu")[0], expected, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_features_use_running_statistics_and_leave_the_mode_as_it_was(training):
    recipe, tiles = make_recipe(), random_tiles(6)
    encoder = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()).train(training)
    statistics = encoder[0].running_mean.clone()
    one_by_one = extract_features(encoder, tiles, recipe, "cpu", batch_size=1)
    assert torch.equal(one_by_one, extract_features(encoder, tiles, recipe, "cpu", batch_size=6))
    assert encoder.training is training
    assert torch.equal(encoder[0].running_mean, statistics)
    with pytest.raises(RuntimeError):
        extract_features(encoder, random_tiles(2, bands=5), make_recipe(bands=5), "cpu")
    assert encoder.training is training


def test_mean_colour():
    tiles = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    tiles[0, 0] = 255
    tiles[0, 1, 0] = 51
    assert torch.allclose(mean_colour_features(tiles, make_recipe()), torch.tensor([[1.0, 0.1, 0.0]]))


def test_stored_values_become_the_pixels_of_training():
    scaling = {"scaling": "range", "low": [1000.0, -200.0], "high": [3000.0, 200.0]}
    recipe = make_recipe(bands=2, data=scaling)
    tiles = torch.zeros(1, 2, 8, 8, dtype=torch.int16)
    tiles[0, 0, :2] = 1500  # a quarter of the range, in a quarter of the tile
    tiles[0, 1] = 300  # cut off at 1
    assert torch.allclose(mean_colour_features(tiles, recipe), torch.tensor([[0.0625, 1.0]]))
    features = extract_features(nn.Flatten(), tiles, recipe, "cpu").view(2, 8, 8)
    assert torch.allclose(features[0, :2], torch.tensor((0.25 - 0.4) / 0.2))
    assert torch.allclose(features[0, 2:], torch.tensor((0 - 0.4) / 0.2))
    assert torch.allclose(features[1], torch.tensor((1 - 0.4) / 0.2))


def test_a_figure_is_of_all_tiles_or_of_none():
    class Damaged:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise DamagedTile("cannot be decoded (truncated): row 0 of t.parquet")

    with pytest.raises(
        RecipeError, match=r"^labelled tile 0 cannot be decoded \(truncated\): row 0 of t.parquet; make"
    ):
        extract_features(nn.Flatten(), Damaged(), make_recipe(), "cpu")


def test_queries_are_spread_over_classes_and_within_them():
    labels = [0] * 10 + [1] * 10 + [2] * 10
    assert choose_queries(labels, 3) == [5, 15, 25]
    assert choose_queries(labels, 6) == [3, 13, 23, 6, 16, 26]
    assert [labels[q] for q in choose_queries(labels, 8)] == [0, 1, 2, 0, 1, 2, 0, 1]
    many = [label for label in range(10) for _ in range(3)]
    assert [many[q] for q in choose_queries(many, 8)] == [0, 1, 3, 4, 5, 6, 8, 9]
    assert choose_queries([4, 4], 8) == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(("bands", "size"), [(3, 32), (1, 7), (13, 200)])
def test_the_picture_frames_same_and_other_classes(tmp_path, bands, size):
    train, test = random_tiles(6, size, bands), random_tiles(2, size, bands, seed=1)
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
    with pytest.raises(RecipeError, match="is not JSON"):
        merge_summary(path, {})
    assert path.read_text() == "{half"


def test_the_verdict_is_plain():
    won = {"knn_top1": 0.8, "knn_top1_random_init": 0.6, "knn_top1_mean_colour": 0.75}
    won |= {"knn_top1_grey": 0.6, "knn_top1_grey_random_init": 0.4}
    assert verdict(won) == (
        "Pretraining beats random initialisation in colour, the mean colour and random initialisation on grey tiles."
    )
    assert verdict(won | {"knn_top1_mean_colour": 0.8}) == "Pretraining did not beat the mean colour."


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
    checkpoint.mkdir(parents=True)
    torch.manual_seed(7)
    weights = build_encoder(recipe.encoder).state_dict()
    save_file(
        {f"encoder.{name}": tensor.contiguous() for name, tensor in weights.items()}, checkpoint / "model.safetensors"
    )
    save_recipe(recipe, checkpoint / "recipe.yaml")
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
    figures = json.loads(result.stdout)
    assert set(figures) == {
        "knn_top1",
        "knn_top1_random_init",
        "knn_top1_mean_colour",
        "knn_top1_grey",
        "knn_top1_grey_random_init",
        "knn_train_tiles",
        "knn_test_tiles",
        "knn_classes",
        "knn_neighbours",
    }
    assert (figures["knn_train_tiles"], figures["knn_test_tiles"], figures["knn_classes"]) == (24, 12, 2)
    assert figures["knn_top1_mean_colour"] == 1
    assert json.loads((labelled_run / "run/summary.json").read_text()) == {"steps": 1, **figures}
    assert (labelled_run / "run/neighbours.png").is_file()
    assert "Pretraining did not beat" in result.stderr  # nothing beats a mean colour that is always right
    assert "plate carrée" not in result.stderr  # that is the demo's weakness, not this data's
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
    for test, reason in (("other", "classes differ"), ("unlabelled", "is empty or negative")):
        sources = {"train_source": str(labelled_run / "train"), "test_source": str(labelled_run / test)}
        with pytest.raises(RecipeError, match=reason):
            open_labelled(make_recipe(32, evaluation=sources))


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
    draw_judgement(tmp_path / "neighbours.png", recipe, labelled, judgement)
    query = choose_queries([1, 0] * 6)[0]
    stored = open_tiles(str(tmp_path / "test"), recipe.data.model_copy(update={"image_column": "msi"}), 13)[query]
    with Image.open(tmp_path / "neighbours.png") as picture:
        shown = np.array(picture)[108 : 108 + 128 : 4, 32 : 32 + 128 : 4].astype(float)  # 4 pixels to one
    for band, name in enumerate(("B4", "B3", "B2")):
        values = stored[SENTINEL2.index(name)].float().numpy()
        assert np.corrcoef(shown[:, :, band].ravel(), values.ravel())[0, 1] > 0.99
