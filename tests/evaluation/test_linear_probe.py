"""The linear probe against plain gradient descent, and the paper's schedule against a rewrite by hand."""

import math

import numpy as np
import pytest
import torch

from moco_accel.evaluation import linear_probe
from moco_accel.evaluation.linear_probe import STRENGTHS, hold_back, predict_linearly, standardised


def blobs(count, classes=3, width=4, seed=0, apart=1.2):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = apart * torch.nn.functional.one_hot(labels, width)
    return torch.randn(count, width, generator=generator) + centres, labels


def by_gradient_descent(features, labels, strength):
    """Minimise |W|² / 2 + C Σ cross-entropy in small steps, in float64; the bias is free. Returns W [C, D] and b."""
    features, targets = features.double().numpy(), np.eye(int(labels.max()) + 1)[labels.numpy()]
    weight, bias = np.zeros((targets.shape[1], features.shape[1])), np.zeros(targets.shape[1])
    step = 1 / (1 + strength * 0.5 * (np.linalg.norm(features, 2) ** 2 + len(features)))
    for _ in range(20_000):
        logits = features @ weight.T + bias
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        errors = shares / shares.sum(axis=1, keepdims=True) - targets
        gradient, of_bias = weight + strength * errors.T @ features, strength * errors.sum(axis=0)
        weight, bias = weight - step * gradient, bias - step * of_bias
        if max(abs(gradient).max(), abs(of_bias).max()) < 1e-8:
            break
    return weight, bias


@pytest.mark.parametrize("strength", [1e-2, 0.1, 1.0])
def test_coefficients_are_those_of_gradient_descent(strength):
    features, labels = blobs(60)
    (features,) = standardised(features)
    model = linear_probe._logistic(1e-4).set_params(C=strength)
    assert linear_probe._fit(model, features, labels)
    weight, _ = by_gradient_descent(features, labels, strength)
    assert abs(weight).max() > 0.01
    assert abs(model.coef_ - weight).max() < 1e-3  # measured 3.3e-4


def test_strength_and_predictions_are_those_of_gradient_descent():
    """Overlapping classes and 20 features of noise: too weak a penalty learns the noise."""
    features, labels = blobs(90, width=24)
    test, _ = blobs(200, width=24, seed=1)
    ours = predict_linearly(features, labels, test, "logistic", seed=3)
    fit, held = hold_back(labels, 3)
    right = []
    for strength in STRENGTHS:
        tried = standardised(features[fit], features[held])
        weight, bias = by_gradient_descent(tried[0], labels[fit], strength)
        right.append((np.argmax(tried[1].numpy() @ weight.T + bias, axis=1) == labels[held].numpy()).sum())
    assert ours.strength == STRENGTHS[int(np.argmax(right))]
    assert STRENGTHS[0] < ours.strength < STRENGTHS[-1]
    train, test = standardised(features, test)
    weight, bias = by_gradient_descent(train, labels, ours.strength)
    assert ours.predicted.tolist() == np.argmax(test.numpy() @ weight.T + bias, axis=1).tolist()
    assert ours.converged


def test_the_papers_schedule_is_that_of_a_rewrite(monkeypatch):
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
        for some in (order[:16], order[16:32]):  # the last 8 are dropped, as by the paper's loader
            logits = x[some] @ weight.T + bias
            shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            errors = (shares - y[some]) / 16
            speed_w, speed_b = 0.9 * speed_w + errors.T @ x[some], 0.9 * speed_b + errors.sum(axis=0)
            weight, bias = weight - rate * speed_w, bias - rate * speed_b
    ours = predict_linearly(features, labels, test, "sgd", seed=5).predicted
    theirs = np.argmax(test.double().numpy() @ weight.T + bias, axis=1)
    assert ours.tolist() == theirs.tolist()
    assert len(set(theirs)) == 3


@pytest.mark.parametrize("probe", ["logistic", "sgd"])
def test_a_probe_is_the_same_on_each_call_and_leaves_random_states_alone(probe):
    features, labels = blobs(60)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = (predict_linearly(features, labels, features, probe, seed=2).predicted for _ in range(2))
    assert torch.equal(first, second)
    assert (first == labels).float().mean() > 0.6
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_a_fifth_of_each_class_is_held_back():
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 2 + [3])
    fit, held = hold_back(labels, 0)
    assert sorted([*fit.tolist(), *held.tolist()]) == list(range(63))
    assert torch.bincount(labels[held]).tolist() == [10, 2, 1]  # a class of one tile keeps it
    assert not torch.equal(held, hold_back(labels, 1)[1])


def test_standardised_by_the_training_side_alone():
    train = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    ours, other = standardised(train, torch.tensor([[4.0, 9.0]]))
    assert ours.tolist() == [[-1, 0], [1, 0]]
    assert other.tolist() == [[2, 0]]  # what never varied in training tells nothing
