"""The linear probe against plain gradient descent, and the paper's schedule against a rewrite in NumPy."""

import math

import numpy as np
import pytest
import torch

from moco_accel.evaluation import linear_probe
from moco_accel.evaluation.linear_probe import C_VALUES, VALIDATION_SHARE, predict_with_linear_probe, standardise
from moco_accel.evaluation.splits import split_at_random


def blobs(count, classes=3, width=4, seed=0, apart=1.2):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = apart * torch.nn.functional.one_hot(labels, width)
    return torch.randn(count, width, generator=generator) + centres, labels


def by_gradient_descent(features, labels, c):
    """Minimise |W|² / 2 + C Σ cross-entropy in small steps, in float64; return W [classes, D] and the free bias."""
    features, targets = features.double().numpy(), np.eye(int(labels.max()) + 1)[labels.numpy()]
    weight, bias = np.zeros((targets.shape[1], features.shape[1])), np.zeros(targets.shape[1])
    step = 1 / (1 + c * 0.5 * (np.linalg.norm(features, 2) ** 2 + len(features)))
    for _ in range(20_000):
        logits = features @ weight.T + bias
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        errors = shares / shares.sum(axis=1, keepdims=True) - targets
        gradient, of_bias = weight + c * errors.T @ features, c * errors.sum(axis=0)
        weight, bias = weight - step * gradient, bias - step * of_bias
        if max(abs(gradient).max(), abs(of_bias).max()) < 1e-8:
            break
    return weight, bias


@pytest.mark.parametrize("c", [1e-2, 0.1, 1.0])
def test_coefficients_match_gradient_descent(c):
    features, labels = blobs(60)
    (features,) = standardise(features)
    model = linear_probe._logistic_regression(1e-4).set_params(C=c)
    assert linear_probe._fit(model, features, labels)
    weight, _ = by_gradient_descent(features, labels, c)
    assert abs(weight).max() > 0.01
    assert abs(model.coef_ - weight).max() < 1e-3  # measured 3.3e-4


def test_chosen_c_and_predictions_match_gradient_descent():
    """Overlapping classes and 20 features of noise: too weak a penalty fits the noise."""
    features, labels = blobs(90, width=24)
    test, _ = blobs(200, width=24, seed=1)
    ours = predict_with_linear_probe(features, labels, test, "logistic", seed=3)
    split = split_at_random(labels, VALIDATION_SHARE, 3)
    fitted, held_out = standardise(features[split.train], features[split.test])
    correct = []
    for c in C_VALUES:
        weight, bias = by_gradient_descent(fitted, labels[split.train], c)
        correct.append((np.argmax(held_out.numpy() @ weight.T + bias, axis=1) == labels[split.test].numpy()).sum())
    assert ours.c == C_VALUES[int(np.argmax(correct))]
    assert C_VALUES[0] < ours.c < C_VALUES[-1]
    train, test = standardise(features, test)
    weight, bias = by_gradient_descent(train, labels, ours.c)
    assert ours.predicted.tolist() == np.argmax(test.numpy() @ weight.T + bias, axis=1).tolist()
    assert ours.converged


def test_the_papers_schedule_matches_a_rewrite(monkeypatch):
    monkeypatch.setattr(linear_probe, "SGD_BATCH", 16)
    features, labels = blobs(40)
    test, _ = blobs(300, seed=1)
    generator = torch.Generator().manual_seed(5)
    weight = (torch.randn(3, 4, generator=generator) * 0.01).double().numpy()
    bias, speed_w, speed_b = np.zeros(3), np.zeros((3, 4)), np.zeros(3)
    x, y = features.double().numpy(), np.eye(3)[labels.numpy()]
    for epoch in range(90):
        order = torch.randperm(40, generator=generator).numpy()
        rate = 3 * 16 / 256 * (1 + math.cos(math.pi * epoch / 90)) / 2
        for some in (order[:16], order[16:32]):  # the last 8 are dropped, as in the paper's loader
            logits = x[some] @ weight.T + bias
            shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            errors = (shares - y[some]) / 16
            speed_w, speed_b = 0.9 * speed_w + errors.T @ x[some], 0.9 * speed_b + errors.sum(axis=0)
            weight, bias = weight - rate * speed_w, bias - rate * speed_b
    ours = predict_with_linear_probe(features, labels, test, "sgd", seed=5).predicted
    theirs = np.argmax(test.double().numpy() @ weight.T + bias, axis=1)
    assert ours.tolist() == theirs.tolist()
    assert len(set(theirs)) == 3


@pytest.mark.parametrize("probe", ["logistic", "sgd"])
def test_a_probe_is_deterministic_and_keeps_global_random_states(probe):
    features, labels = blobs(60)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = (predict_with_linear_probe(features, labels, features, probe, seed=2).predicted for _ in range(2))
    assert torch.equal(first, second)
    assert (first == labels).float().mean() > 0.6
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_statistics_are_those_of_the_training_set():
    train = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    ours, other = standardise(train, torch.tensor([[4.0, 9.0]]))
    assert ours.tolist() == [[-1, 0], [1, 0]]
    assert other.tolist() == [[2, 0]]  # a dimension that is constant in training carries no information
