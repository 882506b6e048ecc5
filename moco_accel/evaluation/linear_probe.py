"""Linear classifiers on frozen features: logistic regression, or the schedule of the MoCo v3 paper."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from moco_accel.evaluation.splits import split_at_random

Probe = Literal["logistic", "sgd", "none"]
C_VALUES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Candidates for C, the inverse strength of the L2 penalty, chosen on a validation set."""
VALIDATION_SHARE = 0.2  # of each class of the training set

EPOCHS, SGD_BATCH, SGD_LR, SGD_MOMENTUM = 90, 1024, 3.0, 0.9  # MoCo v3, section 4.1; lr for 256 tiles
MAX_ITERATIONS = 3000  # on 2,505 demo tiles at most 1,202 were needed
_SEARCH_TOLERANCE, _FINAL_TOLERANCE = 1e-3, 1e-4  # of the gradient; the looser one takes half the time
_INITIAL_STD = 0.01


@dataclass(frozen=True)
class Predictions:
    """Predicted classes, int64 [tiles], the chosen C (None for SGD), and whether `MAX_ITERATIONS` was not reached."""

    predicted: Tensor
    c: float | None = None
    converged: bool = True


def predict_with_linear_probe(train: Tensor, labels: Tensor, test: Tensor, probe: Probe, seed: int) -> Predictions:
    """Fit a linear classifier and predict the classes of the test tiles.

    Args:
        train, labels: Features [N, D] and classes, int64 [N], of the training tiles.
        test: Features of the test tiles [M, D].
        probe: `logistic` or `sgd`.
        seed: Seed of the validation set (logistic), or of the initial weights and the order of tiles (sgd).
    """
    if probe == "sgd":
        return Predictions(_predict_with_sgd(train, labels, test, seed))
    assert probe == "logistic", probe
    return _predict_with_logistic_regression(train, labels, test, seed)


def standardise(train: Tensor, *others: Tensor) -> list[Tensor]:
    """Subtract the mean of `train` [N, D] from all features and divide by its standard deviation.

    Dimensions that do not vary in `train` become 0.
    """
    mean, std = train.double().mean(dim=0), train.double().std(dim=0, correction=0)
    scale = torch.where(std > 1e-6 * (1e-6 + mean.abs()), std, math.inf)  # rounding error of a constant in float32
    return [((features.double() - mean) / scale).float() for features in (train, *others)]


def _predict_with_logistic_regression(train: Tensor, labels: Tensor, test: Tensor, seed: int) -> Predictions:
    """Choose C by validation accuracy (the smaller of equals), then fit on all training tiles."""
    split = split_at_random(labels, VALIDATION_SHARE, seed)
    fitted, held_out = standardise(train[split.train], train[split.test])
    truth = labels[split.test].numpy()
    correct = []
    model = _logistic_regression(_SEARCH_TOLERANCE)
    for c in C_VALUES:  # each fit starts from the weights of the one before
        model.set_params(C=c)
        _fit(model, fitted, labels[split.train])
        correct.append(int((model.predict(held_out.numpy()) == truth).sum()))
    chosen = C_VALUES[int(np.argmax(correct))]
    train, test = standardise(train, test)
    model = _logistic_regression(_FINAL_TOLERANCE).set_params(C=chosen)
    converged = _fit(model, train, labels)
    return Predictions(torch.from_numpy(model.predict(test.numpy())), chosen, converged)


def _logistic_regression(tolerance: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(solver="lbfgs", tol=tolerance, max_iter=MAX_ITERATIONS, warm_start=True)


def _fit(model: Any, features: Tensor, labels: Tensor) -> bool:
    """Fit in one thread (on busy cores, several threads took 500 times as long); return whether it converged."""
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features.numpy(), labels.numpy())
    return int(model.n_iter_.max()) < MAX_ITERATIONS


def _predict_with_sgd(train: Tensor, labels: Tensor, test: Tensor, seed: int) -> Tensor:
    """Follow the paper's linear schedule on cached features, so without augmentation.

    Momentum 0.9, no weight decay, 90 epochs, lr 3 · batch / 256 on a cosine to 0. The batch is 1,024 tiles as in the
    paper, or all tiles if there are fewer.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = int(labels.max()) + 1
    weight = torch.randn(classes, train.shape[1], generator=generator) * _INITIAL_STD
    weight, bias = weight.requires_grad_(), torch.zeros(classes, requires_grad=True)
    batch_size = min(SGD_BATCH, len(train))
    steps_per_epoch = len(train) // batch_size
    optimizer = torch.optim.SGD([weight, bias], lr=0.0, momentum=SGD_MOMENTUM)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(train), generator=generator)
        for group in optimizer.param_groups:  # once per epoch, as in the paper's code
            group["lr"] = SGD_LR * batch_size / 256 * 0.5 * (1 + math.cos(math.pi * epoch / EPOCHS))
        for batch in order[: steps_per_epoch * batch_size].split(batch_size):
            loss = cross_entropy(train[batch] @ weight.T + bias, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return (test @ weight.T + bias).argmax(dim=1)
