"""A linear classifier on frozen features: logistic regression, or the paper's schedule on cached features."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

Probe = Literal["logistic", "sgd", "none"]
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Values of C, the inverse strength of the L2 penalty; each is tried on a part of the training side."""
VALIDATION_SHARE = 0.2  # of each class

EPOCHS, SGD_BATCH, SGD_LR, SGD_MOMENTUM = 90, 1024, 3.0, 0.9  # MoCo v3, section 4.1; lr for 256 tiles
MOST_ITERATIONS = 3000  # on 2,505 demo tiles at most 1,202 were needed
_ROUGH, _FINE = 1e-3, 1e-4  # of the gradient, to choose C and to fit; the rough one takes half the time
_INITIAL_STD = 0.01


@dataclass(frozen=True)
class Answers:
    """`predicted` class numbers int64 [M]; `strength` is the C chosen; `converged`: not cut off by a count of steps."""

    predicted: Tensor
    strength: float | None = None
    converged: bool = True


def predict_linearly(train: Tensor, labels: Tensor, test: Tensor, probe: Probe, seed: int) -> Answers:
    """Classes of `test` [M, D] by a linear classifier of `train` [N, D] and `labels` int64 [N].

    `seed` draws what is held back to choose C (logistic), or the first weights and the order of tiles (sgd).
    """
    if probe == "sgd":
        return Answers(_by_sgd(train, labels, test, seed))
    assert probe == "logistic", probe
    return _by_logistic_regression(train, labels, test, seed)


def standardised(train: Tensor, *others: Tensor) -> list[Tensor]:
    """All less the mean of `train` [N, D] and over its standard deviation; what does not vary becomes 0."""
    mean, std = train.double().mean(dim=0), train.double().std(dim=0, correction=0)
    scale = torch.where(std > 1e-6 * (1e-6 + mean.abs()), std, math.inf)  # float32 leaves so much of a constant
    return [((features.double() - mean) / scale).float() for features in (train, *others)]


def hold_back(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to fit on and to choose C by: of each class a fifth is held back, at least one tile of two or more."""
    generator = torch.Generator().manual_seed(seed)
    fit, held = [], []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        count = min(len(members) - 1, max(1, round(VALIDATION_SHARE * len(members))))
        held.append(members[:count])
        fit.append(members[count:])
    return torch.cat(fit).sort().values, torch.cat(held).sort().values


def _by_logistic_regression(train: Tensor, labels: Tensor, test: Tensor, seed: int) -> Answers:
    """L2-penalised, by L-BFGS; C by accuracy on what was held back (the smaller of equals), then fitted on all."""
    fit, held = hold_back(labels, seed)
    tried, truth = standardised(train[fit], train[held]), labels[held].numpy()
    right = []
    model = _logistic(_ROUGH)
    for strength in STRENGTHS:  # from strong to weak, each from where the one before it ended
        model.set_params(C=strength)
        _fit(model, tried[0], labels[fit])
        right.append(int((model.predict(tried[1].numpy()) == truth).sum()))
    chosen = STRENGTHS[int(np.argmax(right))]
    features = standardised(train, test)
    model = _logistic(_FINE).set_params(C=chosen)
    converged = _fit(model, features[0], labels)
    return Answers(torch.from_numpy(model.predict(features[1].numpy())), chosen, converged)


def _logistic(tolerance: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(solver="lbfgs", tol=tolerance, max_iter=MOST_ITERATIONS, warm_start=True)


def _fit(model: Any, features: Tensor, labels: Tensor) -> bool:
    """Whether it converged; sklearn would tell stderr. In one thread: on busy cores many took 500 times as long."""
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features.numpy(), labels.numpy())
    return int(model.n_iter_.max()) < MOST_ITERATIONS


def _by_sgd(train: Tensor, labels: Tensor, test: Tensor, seed: int) -> Tensor:
    """The paper's linear schedule: momentum 0.9, no weight decay, lr 3 · batch / 256 on a cosine to 0, 90 epochs.

    The paper's batch is 1,024; here it is never more than there are tiles. Nothing is augmented: features are cached.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = int(labels.max()) + 1
    weight = torch.randn(classes, train.shape[1], generator=generator) * _INITIAL_STD
    weight, bias = weight.requires_grad_(), torch.zeros(classes, requires_grad=True)
    batch = min(SGD_BATCH, len(train))
    steps_per_epoch = len(train) // batch
    optimizer = torch.optim.SGD([weight, bias], lr=0.0, momentum=SGD_MOMENTUM)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(train), generator=generator)
        for group in optimizer.param_groups:  # by epochs, as in the paper's code
            group["lr"] = SGD_LR * batch / 256 * 0.5 * (1 + math.cos(math.pi * epoch / EPOCHS))
        for some in order[: steps_per_epoch * batch].split(batch):
            loss = cross_entropy(train[some] @ weight.T + bias, labels[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return (test @ weight.T + bias).argmax(dim=1)
