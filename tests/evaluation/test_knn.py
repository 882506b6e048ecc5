"""kNN against a naive implementation, and near-duplicates of training tiles."""

import math

import pytest
import torch
from torch import nn

from moco_accel.evaluation import knn
from moco_accel.evaluation.knn import (
    MEAN_COLOUR,
    count_duplicates,
    fingerprint,
    knn_metric,
    nearest_neighbours,
    predict_by_knn,
)
from moco_accel.recipe.schema import Evaluation


def naive_knn(train, train_labels, test, test_labels, k, temperature, classes):
    """Wu et al. 2018, section 3.4, one number at a time."""
    correct = 0
    for query, truth in zip(test.tolist(), test_labels.tolist(), strict=True):
        similarities = []
        for index, key in enumerate(train.tolist()):
            dot = sum(a * b for a, b in zip(query, key, strict=True))
            similarities.append((dot / math.hypot(*query) / math.hypot(*key), index))
        votes = [0.0] * classes
        for similarity, index in sorted(similarities, reverse=True)[:k]:
            votes[train_labels[index]] += math.exp(similarity / temperature)
        correct += votes.index(max(votes)) == truth
    return correct / len(test)


def knn_accuracy(train, train_labels, test, test_labels, k, temperature=0.07, *, classes, metric="cosine"):
    evaluation = Evaluation(neighbours=k, temperature=temperature)
    predicted = predict_by_knn(train, train_labels, test, classes, evaluation, metric)
    return int((predicted == test_labels).sum()) / len(test)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (1000, 0.07)])
def test_knn_matches_wu_et_al(monkeypatch, k, temperature):
    monkeypatch.setattr(knn, "_CHUNK_SIZE", 7)  # several chunks, the last one smaller
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 4, (60,), generator=generator)
    train = torch.randn(60, 5, generator=generator) + 0.7 * nn.functional.one_hot(labels, 5)
    truth = torch.randint(0, 4, (40,), generator=generator)
    test = torch.randn(40, 5, generator=generator) + 0.7 * nn.functional.one_hot(truth, 5)
    ours = knn_accuracy(train, labels, test, truth, k, temperature, classes=4)
    assert ours == naive_knn(train, labels, test, truth, k, temperature, 4)
    assert 0.25 < ours < 1


def test_the_nearest_neighbour_outvotes_the_majority_only_at_low_temperature():
    train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])  # cosines 1, 0.6, 0.6
    arguments = (train, torch.tensor([0, 1, 1]), torch.tensor([[2.0, 0.0]]), torch.tensor([0]), 3)
    # exp(0.4 / T) against 2: the single neighbour wins for T < 0.4 / ln 2 = 0.577
    assert knn_accuracy(*arguments, temperature=0.57, classes=2) == 1
    assert knn_accuracy(*arguments, temperature=0.58, classes=2) == 0


def test_euclidean_votes_depend_on_brightness_and_have_equal_weights():
    metric = knn_metric(MEAN_COLOUR)
    assert (metric, knn_metric("_random_init")) == ("euclidean", "cosine")
    dark, bright = torch.tensor([[0.1, 0.1]]), torch.tensor([[0.9, 0.9]])
    train, labels = torch.cat([dark, bright]), torch.tensor([0, 1])
    test, truth = torch.tensor([[0.2, 0.2], [0.8, 0.8]]), torch.tensor([0, 1])
    assert knn_accuracy(train, labels, test, truth, 1, classes=2, metric=metric) == 1
    votes = torch.tensor([[0.2], [0.5], [0.5]]), torch.tensor([0, 1, 1])
    assert knn_accuracy(*votes, torch.tensor([[0.2]]), torch.tensor([1]), 3, classes=2, metric=metric) == 1


def test_knn_without_training_tiles_is_an_error():
    with pytest.raises(ValueError, match="found 0 training and 2 test tiles"):
        predict_by_knn(torch.zeros(0, 3), torch.zeros(0).long(), torch.zeros(2, 3), 1, Evaluation())


def test_nearest_neighbours_are_sorted_by_nearness():
    train = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert nearest_neighbours(train, torch.tensor([[5.0, 1.0]]), 3).tolist() == [[1, 2, 0]]
    assert nearest_neighbours(train, torch.tensor([[0.0, 0.9]]), 2, "euclidean").tolist() == [[0, 2]]


def test_near_duplicates_are_counted_and_uniform_tiles_are_not():
    generator = torch.Generator().manual_seed(0)
    tiles = torch.rand(6, 3, 32, 32, generator=generator)
    noise = 0.02 * torch.randn(3, 32, 32, generator=generator)  # as from compression
    seas = 0.1 + 0.005 * torch.randn(2, 3, 32, 32, generator=generator)
    train = [fingerprint(tile) for tile in (*tiles[:3], seas[0])]
    copy = fingerprint(tiles[0].clone())
    found = count_duplicates(train, [copy, *map(fingerprint, (*tiles[3:], tiles[1] + noise, seas[1]))])
    assert (found.exact, found.near, found.tested) == (1, 1, 6)
    assert found.share == pytest.approx(1 / 3)
    assert count_duplicates(train, [copy]).share == 1
