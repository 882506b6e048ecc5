"""Trace the trainer's own construction and step on fake tensors, without a GPU and without memory."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import ExitStack

import torch
from accelerate import Accelerator
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes as disable_current_modes

from moco_accel.networks.moco import MoCo, View, build_moco
from moco_accel.networks.sharding import local_tensor
from moco_accel.recipe.schema import Recipe
from moco_accel.training.optimizers import build_optimizer
from moco_accel.training.step import (
    StepResult,
    average_gradients,
    build_accelerator,
    gather_keys_of_views,
    optimizer_step,
    prepare,
    train_step,
)
from moco_accel.views.augment import AugmentedView
from moco_accel.views.crops import CropBatch, crop_dtype
from moco_accel.views.parameters import worst_case_photometry
from planner.trace.autocast_rules import cuda_autocast_rules
from planner.trace.cuda_rules import cublas_workspaces
from planner.trace.events import Trace
from planner.trace.fake_ops import FakeOps
from planner.trace.fake_processes import fresh_accelerate
from planner.trace.recorder import Recorder
from planner.trace.step_hooks import TracedView, count_status_exchanges, record_phases, record_sharding

_CPU = torch.device("cpu")


def trace_step(
    recipe: Recipe, compute_capability: int | None, steps: int = 1, step: Callable[..., StepResult] = train_step
) -> Trace:
    """Trace construction, preparation and `steps` optimizer steps of `recipe` on fake CPU tensors.

    CUDA's rules for a card of `compute_capability` (86 is 8.6) apply; None traces a CPU. fp16 is traced as bf16, whose
    tensors have the same bytes and which Accelerate can run on a CPU.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", FutureWarning)  # a run shows the trainer's own warnings
        stack.enter_context(fresh_accelerate(recipe.hardware.num_devices))
        if compute_capability is not None:
            stack.enter_context(cuda_autocast_rules())
        if recipe.memory.mixed_precision == "fp16":
            memory = recipe.memory.model_copy(update={"mixed_precision": "bf16"})
            recipe = recipe.model_copy(update={"memory": memory})
        with torch.device("meta"):
            moco = build_moco(recipe)
        _replace_by_fake_tensors(moco, mode := FakeTensorMode())
        stack.enter_context(mode)
        recorder = Recorder(FakeOps(mode), compute_capability)
        stack.enter_context(record_sharding(recorder))
        accelerator = build_accelerator(recipe, cpu=True)
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of missing CPU kernels, which are not used
        with disable_current_modes():  # bitsandbytes computes its quantisation tables, which need real tensors
            optimizer = build_optimizer(recipe, moco)
        views = _views(recipe, recorder)
        with recorder:
            model, prepared = _prepare(recorder, accelerator, moco, optimizer, recipe)
            recorder.trace.step_start = len(recorder.trace.events)
            for _ in range(steps):
                with record_phases(recorder, moco, optimizer), count_status_exchanges(recorder.trace):
                    step(accelerator, model, prepared, views, recipe, 0.99)
            _categorize_lasting(recorder, moco, optimizer)
        recorder.closed = True
    return recorder.trace


def _prepare(
    recorder: Recorder, accelerator: Accelerator, moco: MoCo, optimizer: torch.optim.Optimizer, recipe: Recipe
) -> tuple[MoCo, torch.optim.Optimizer]:
    if recipe.memory.fully_shard:  # whole parameters stay on the host; only their shards move to the device
        for tensor in moco.parameters():
            recorder.ignore(tensor)
    else:
        _record_model(recorder, moco)
    # fake tensors are on the device already, and torch refuses to move them
    model, prepared = prepare(accelerator, moco, optimizer, on_device=True)
    _record_model(recorder, moco)  # shards have replaced sharded parameters
    if recorder.compute_capability is not None:
        for size in cublas_workspaces(recorder.compute_capability):
            recorder.reserve(size, "cuBLAS workspace", "workspaces")
    return model, prepared


def _replace_by_fake_tensors(moco: MoCo, mode: FakeTensorMode) -> None:
    """Replace meta tensors. (A module that is built on fake tensors refuses `.to(memory_format=…)`.)"""
    for module in moco.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = FakeTensor(mode, parameter.detach(), _CPU)
            setattr(module, name, torch.nn.Parameter(fake, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, FakeTensor(mode, buffer, _CPU))


def _record_model(recorder: Recorder, moco: MoCo) -> None:
    """Record the model's tensors one by one, as they arrive from the host, without temporaries of initialisation."""
    for name, tensor in (*moco.named_parameters(), *moco.named_buffers()):
        recorder.record(local_tensor(tensor), name, "momentum_weights" if name.startswith("momentum_") else "weights")


def _views(recipe: Recipe, recorder: Recorder) -> tuple[View, View]:
    """The trainer's own views: crops on the host with the most expensive photometry, augmented when requested."""
    tiles, size = recipe.batch.micro_batch_size, recipe.encoder.image_size
    pixels = torch.empty(tiles, recipe.encoder.bands, size, size, dtype=crop_dtype(recipe))
    recorder.ignore(pixels)
    crops = CropBatch(pixels, [worst_case_photometry(recipe)] * tiles, [0] * tiles)
    batches = [crops] * recipe.batch.accumulation_steps
    view1, view2 = (TracedView(AugmentedView(batches, recipe, _CPU, on_gpu=True), recorder) for _ in range(2))
    return view1, view2


def _categorize_lasting(recorder: Recorder, moco: MoCo, optimizer: torch.optim.Optimizer) -> None:
    recorder.record(moco.gradient_buffer, "gradients", "gradients")
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor) and recorder.number_of(value) is not None:
                recorder.record(value, "optimizer state", "optimizer_state")


def both_views_step(
    accelerator: Accelerator,
    moco: MoCo,
    optimizer: torch.optim.Optimizer,
    views: tuple[View, View],
    recipe: Recipe,
    momentum_coefficient: float,
) -> StepResult:
    """Compute the result of `train_step` as the paper does, with both views at once and without micro-batches.

    Negatives come from the global batch. For comparison only. Source: algorithm 1 of arXiv 2104.02057.
    """
    moco.update_momentum_encoder(momentum_coefficient)
    moco.gradient_buffer.zero_()
    view1, view2 = ([torch.cat([view[index] for index in range(len(view))])] for view in views)
    keys1, keys2 = gather_keys_of_views(accelerator, moco, view1, view2)
    loss1, spread1 = moco(view1, keys2)
    loss2, spread2 = moco(view2, keys1)
    accelerator.backward(loss1 + loss2)
    average_gradients(moco)
    skipped = optimizer_step(accelerator, optimizer)
    moco.enqueue(keys2)
    return StepResult((loss1 + loss2).detach(), (spread1 + spread2) / 2, skipped)
