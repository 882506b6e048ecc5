"""Properties of the step and its parts; test_parity.py compares the step with the paper."""

from __future__ import annotations

import copy

import pytest
import torch
from support.recipes import small_recipe
from support.reference_moco_v3 import contrast
from support.steps import Training, all_gradients, make_views
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from moco_accel.networks.moco import MoCo, build_moco
from moco_accel.recipe.schema import Recipe
from planner.trace.fake_processes import fresh_accelerate

pytestmark = pytest.mark.usefixtures("float64", "few_blocks")


def run_steps(recipe: Recipe, steps: int, momentum_coefficient: float = 0.99) -> tuple[list[float], MoCo]:
    training = Training(recipe)
    losses = [training.step(make_views(recipe, step), momentum_coefficient).loss.item() for step in range(steps)]
    return losses, training.moco


@pytest.mark.parametrize("micro", [1, 8, 24])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("keep_last", [False, True])
def test_micro_batches_do_not_change_the_gradient(micro: int, checkpointing: bool, keep_last: bool) -> None:
    def batch_of_48(micro: int) -> dict[str, int]:
        return {"global_batch_size": 48, "micro_batch_size": micro, "accumulation_steps": 48 // micro}

    whole, expected = run_steps(small_recipe(batch=batch_of_48(48)), steps=1)
    memory = {"activation_checkpointing": checkpointing, "keep_last_micro_batch": keep_last}
    recipe = small_recipe(batch=batch_of_48(micro), memory=memory)
    losses, moco = run_steps(recipe, steps=1)
    assert losses == pytest.approx(whole, rel=1e-13)
    gradients, expected_gradients = all_gradients(moco), all_gradients(expected)
    error = ((gradients - expected_gradients).norm() / expected_gradients.norm()).item()
    print(f"relative error {error:.1e}")
    assert error < 1e-12  # worst measured: 7e-15


@pytest.mark.parametrize("micro", [8, 4, 2])
@pytest.mark.parametrize("keep_last", [True, False])
def test_last_micro_batch_is_kept_or_recomputed(micro: int, keep_last: bool) -> None:
    batch = {"micro_batch_size": micro, "accumulation_steps": 8 // micro}
    recipe = small_recipe(batch=batch, memory={"keep_last_micro_batch": keep_last})
    moco = build_moco(recipe)
    passes: list[int] = []
    moco.encoder.register_forward_pre_hook(lambda _, pixels: passes.append(len(pixels[0])))
    view1, view2 = (view.split(micro) for view in make_views(recipe))
    loss, _ = moco(view1, moco.keys(view2))
    assert passes == [micro] * (8 // micro)
    loss.backward()
    assert passes == [micro] * (2 * (8 // micro) - (keep_last or micro == 8))


def test_recomputation_updates_running_statistics_once() -> None:
    encoder = {"name": "resnet18", "image_size": 32}
    _, moco = run_steps(small_recipe(encoder=encoder, memory={"activation_checkpointing": True}), steps=1)
    assert moco.encoder.bn1.num_batches_tracked == 4  # two views of two micro-batches, forward only
    assert moco.encoder.layer1[0].bn1.num_batches_tracked == 4
    assert moco.projector[1].num_batches_tracked == 2  # heads see whole views
    assert all(m.momentum == 0.1 for m in moco.modules() if isinstance(m, nn.BatchNorm2d))


def test_ghost_batch_norm_has_the_exact_gradient() -> None:
    """A ResNet in micro-batches equals the same ResNet run on each micro-batch without recomputation."""
    recipe = small_recipe(encoder={"name": "resnet18", "image_size": 32})
    _, ours = run_steps(recipe, steps=1)
    torch.manual_seed(0)
    moco = build_moco(recipe)
    moco.update_momentum_encoder(0.99)
    x1, x2 = (view.split(4) for view in make_views(recipe))
    for query_view, key_view in ((x1, x2), (x2, x1)):
        with torch.no_grad():
            keys = moco.momentum_projector(torch.cat([moco.momentum_encoder(x) for x in key_view]))
        queries = moco.predictor(moco.projector(torch.cat([moco.encoder(x) for x in query_view])))
        contrast(queries, keys, recipe.moco.temperature).backward()
    for parameter, other in zip(ours.parameters(), moco.parameters(), strict=True):
        if parameter.grad is not None:
            assert other.grad is not None
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-9, atol=1e-12)


class DroppingBlock(nn.Module):
    """A residual branch with dropout, and drop-path for whole tiles."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.dropout, self.drop_path = block, nn.Dropout(0.2), StochasticDepth(0.3, "row")

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        return hidden + self.drop_path(self.dropout(self.block(hidden, *args, **kwargs) - hidden))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_and_drop_path_are_replayed(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient uses the masks of the forward: it is the same with and without recomputation."""
    recipe = small_recipe(memory={"activation_checkpointing": checkpointing})

    def add_dropout(moco: MoCo) -> None:
        for encoder in (moco.encoder, moco.momentum_encoder):
            encoder.vit.layers = nn.ModuleList(DroppingBlock(block) for block in encoder.vit.layers)

    def gradient() -> Tensor:
        training = Training(recipe, change=add_dropout)
        training.step(make_views(recipe))
        return all_gradients(training.moco)

    replayed = gradient()
    checkpoint = "moco_accel.networks.moco.checkpoint_reentrant"
    monkeypatch.setattr(checkpoint, lambda function, module, *args: function(*args))
    kept = gradient()
    error = ((replayed - kept).norm() / kept.norm()).item()
    assert error < 1e-12, error  # worst measured: 0


def test_uneven_micro_batches_do_not_change_the_gradient() -> None:
    recipe = small_recipe()
    gradients = []
    for sizes in ([8], [5, 3], [1, 4, 3]):
        training = Training(recipe)
        training.step(make_views(recipe), sizes=sizes)
        gradients.append(all_gradients(training.moco))
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() / gradients[0].norm() < 1e-12  # worst measured: 3e-15


def test_contrast_over_micro_batch_is_plain_accumulation() -> None:
    recipe = small_recipe(batch={"contrast_over": "micro_batch"})
    losses, ours = run_steps(recipe, steps=1)
    torch.manual_seed(0)
    moco = build_moco(recipe)
    moco.update_momentum_encoder(0.99)
    x1, x2 = (view.split(4) for view in make_views(recipe))
    total = 0.0
    for a, b in zip(x1, x2, strict=True):
        with torch.no_grad():
            k1, k2 = (moco.momentum_projector(moco.momentum_encoder(x)) for x in (a, b))
        q1, q2 = (moco.predictor(moco.projector(moco.encoder(x))) for x in (a, b))
        loss = (contrast(q1, k2, 0.2) + contrast(q2, k1, 0.2)) / 2
        loss.backward()
        total += loss.item()
    assert losses == pytest.approx([total], rel=1e-12)
    for parameter, other in zip(ours.parameters(), moco.parameters(), strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_momentum_encoder_is_updated_once_per_step() -> None:
    recipe = small_recipe(batch={"micro_batch_size": 1, "accumulation_steps": 8})
    torch.manual_seed(0)
    start = copy.deepcopy(build_moco(recipe))
    _, moco = run_steps(recipe, steps=2, momentum_coefficient=0.75)
    # the first update sees equal parameters, the second those after one optimizer step
    _, after_one = run_steps(recipe, steps=1, momentum_coefficient=0.75)
    for p0, p1, p_k in zip(
        start.encoder.parameters(), after_one.encoder.parameters(), moco.momentum_encoder.parameters(), strict=True
    ):
        torch.testing.assert_close(p_k, 0.75 * p0 + 0.25 * p1, rtol=1e-12, atol=1e-14)


def test_queue_is_first_in_first_out_and_normalised() -> None:
    recipe = small_recipe(moco={"queue_size": 16})
    moco = build_moco(recipe)
    batches = [torch.randn(8, 16) for _ in range(3)]
    for batch in batches:
        moco.enqueue(batch)
    torch.testing.assert_close(moco.queue[:8], functional.normalize(batches[2], dim=1))
    torch.testing.assert_close(moco.queue[8:], functional.normalize(batches[1], dim=1))
    assert moco.queue_start.item() == 8


@pytest.mark.parametrize("contrast_over", ["global_batch", "micro_batch"])
def test_step_enqueues_k2_once(contrast_over: str) -> None:
    """Its negatives are the step's own keys and the queue before the step."""
    recipe = small_recipe(moco={"queue_size": 24}, batch={"contrast_over": contrast_over})
    torch.manual_seed(0)
    moco = build_moco(recipe)
    before = moco.queue.clone()
    groups = [make_views(recipe)] if contrast_over == "global_batch" else make_views(recipe).split(4, dim=1)
    loss, enqueued = 0.0, []
    for x1, x2 in groups:
        with torch.no_grad():
            k1, k2 = (moco.momentum_projector(moco.momentum_encoder(x)) for x in (x1, x2))
            q1, q2 = (moco.predictor(moco.projector(moco.encoder(x))) for x in (x1, x2))
        loss += sum(contrast(q, torch.cat([k, before]), 0.2).item() for q, k in ((q1, k2), (q2, k1))) / len(groups)
        enqueued.append(functional.normalize(k2, dim=1))
    losses, ours = run_steps(recipe, steps=1)
    assert losses == pytest.approx([loss], rel=1e-12)
    assert ours.queue_start.item() == 8
    torch.testing.assert_close(ours.queue[:8], torch.cat(enqueued), rtol=1e-12, atol=1e-14)
    assert torch.equal(ours.queue[8:], before[8:])
    assert not any(p is ours.queue for p in ours.parameters())


def test_loss_starts_near_chance() -> None:
    batch = {"global_batch_size": 64, "micro_batch_size": 64, "accumulation_steps": 1}
    recipe = small_recipe(batch=batch, moco={"projector_hidden_dim": 512, "output_dim": 256})
    losses, _ = run_steps(recipe, steps=1)
    assert losses[0] == pytest.approx(recipe.chance_loss, rel=0.1)


def test_gradients_are_views_of_one_buffer_throughout() -> None:
    """On two ranks, the averaged buffer is the one that accumulates, so that gradients exist once."""
    recipe = small_recipe(hardware={"num_devices": 2}, batch={"global_batch_size": 16})
    with fresh_accelerate(2):
        training = Training(recipe)
        trainable = [p for p in training.moco.parameters() if p.requires_grad]

        def storages() -> set[int]:
            return {p.grad.untyped_storage().data_ptr() for p in trainable if p.grad is not None}

        before = storages()
        assert before == {training.moco.gradient_buffer.untyped_storage().data_ptr()}
        assert all(p.grad is not None and p.grad.stride() == p.stride() for p in trainable)
        training.step(make_views(recipe)[:, :8])
        assert storages() == before
