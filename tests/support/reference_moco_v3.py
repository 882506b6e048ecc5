"""A naive implementation of MoCo v3: both views at once, without micro-batches and ranks.

It follows arXiv 2104.02057 (algorithm 1 and the published recipes). It uses the networks of moco_accel, but shares
neither loss, optimizers nor schedules with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


def contrast(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Return L(q, k): row i of `k` is the positive of row i of `q`, all other rows are negatives."""
    q, k = q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
    similarity = torch.exp(q @ k.T / temperature)
    return 2 * temperature * -torch.log(similarity.diagonal() / similarity.sum(1)).mean()


@dataclass
class Reference:
    """MoCo v3 on given networks; `epoch` is fractional and determines lr and momentum coefficient."""

    encoder: nn.Module
    projector: nn.Module
    predictor: nn.Module
    momentum_encoder: nn.Module
    momentum_projector: nn.Module
    optimizer: str
    base_lr: float
    weight_decay: float
    temperature: float
    momentum: float
    cosine_momentum: bool
    epochs: float
    warmup_epochs: float
    state: dict[Tensor, list[Tensor]] = field(default_factory=dict)
    steps: int = 0

    def lr(self, epoch: float, batch: int) -> float:
        peak = self.base_lr * batch / 256
        if epoch < self.warmup_epochs:
            return peak * epoch / self.warmup_epochs
        return 0.5 * peak * (1 + math.cos(math.pi * (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)))

    def coefficient(self, epoch: float) -> float:
        if not self.cosine_momentum:
            return self.momentum
        return 1 - 0.5 * (1 + math.cos(math.pi * epoch / self.epochs)) * (1 - self.momentum)

    def step(self, x1: Tensor, x2: Tensor, epoch: float) -> float:
        m, lr = self.coefficient(epoch), self.lr(epoch, len(x1))
        q1, q2 = (self.predictor(self.projector(self.encoder(x))) for x in (x1, x2))
        with torch.no_grad():
            for query, key in ((self.encoder, self.momentum_encoder), (self.projector, self.momentum_projector)):
                for p_q, p_k in zip(query.parameters(), key.parameters(), strict=True):
                    p_k.copy_(m * p_k + (1 - m) * p_q)
            k1, k2 = (self.momentum_projector(self.momentum_encoder(x)) for x in (x1, x2))
        loss = contrast(q1, k2, self.temperature) + contrast(q2, k1, self.temperature)
        trained = [p for net in (self.encoder, self.projector, self.predictor) for p in net.parameters()]
        trained = [p for p in trained if p.requires_grad]
        for p in trained:
            p.grad = None
        loss.backward()
        self.steps += 1
        with torch.no_grad():
            for p in trained:
                assert p.grad is not None
                (self.adamw if self.optimizer == "adamw" else self.lars)(p, p.grad, lr)
        return loss.item()

    def adamw(self, p: Tensor, g: Tensor, lr: float) -> None:
        first, second = self.state.setdefault(p, [torch.zeros_like(p), torch.zeros_like(p)])
        p.mul_(1 - lr * self.weight_decay)
        first.copy_(0.9 * first + 0.1 * g)
        second.copy_(0.999 * second + 0.001 * g * g)
        p.sub_(lr * (first / (1 - 0.9**self.steps)) / ((second / (1 - 0.999**self.steps)).sqrt() + 1e-8))

    def lars(self, p: Tensor, g: Tensor, lr: float) -> None:
        (velocity,) = self.state.setdefault(p, [torch.zeros_like(p)])
        if p.ndim > 1:
            g = g + self.weight_decay * p
            if p.norm() > 0 and g.norm() > 0:
                g = 0.001 * p.norm() / g.norm() * g
        velocity.copy_(0.9 * velocity + g)
        p.sub_(lr * velocity)
