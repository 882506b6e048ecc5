"""The trainer's own construction and step on fake tensors: what it would allocate, without a GPU and without memory."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes as disable_current_modes

from moco_accel.networks.moco import MoCo, View, build_moco
from moco_accel.networks.sharding import local
from moco_accel.recipe.schema import Recipe
from moco_accel.training.optimizers import build_optimizer
from moco_accel.training.step import StepResult, build_accelerator, prepare, train_step
from moco_accel.views.augment import AugmentedView, CropBatch, crop_dtype, heaviest_photometry
from planner.trace.autocast_rules import cuda_autocast_rules
from planner.trace.communication import counted_meetings
from planner.trace.cuda_rules import cublas_workspaces
from planner.trace.events import Trace
from planner.trace.fake_ops import FakeOps
from planner.trace.fake_processes import fresh_accelerate
from planner.trace.recorder import Recorder
from planner.trace.sharding import sharding_seen
from planner.trace.step_phases import TracedView, phases

_CPU = torch.device("cpu")


def trace_step(
    recipe: Recipe, compute_capability: int | None, steps: int = 1, step: Callable[..., StepResult] = train_step
) -> Trace:
    """Trace building, preparing and `steps` optimizer steps of `recipe` on fake CPU tensors.

    With `compute_capability` (86 is 8.6) CUDA's rules for such a card apply; with None the trace is that of a CPU.
    `step` is the trainer's, or one to be compared with it.
    fp16 is traced as bf16, which accelerate can run on a CPU and whose tensors have the same bytes.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", FutureWarning)  # the trainer's own launch shows the trainer's
        stack.enter_context(fresh_accelerate(recipe.hardware.num_devices))
        if compute_capability is not None:
            stack.enter_context(cuda_autocast_rules())
        traced = _traceable(recipe)
        with torch.device("meta"):
            moco = build_moco(traced)
        _fake_on_cpu(moco, mode := FakeTensorMode())
        stack.enter_context(mode)
        recorder = Recorder(FakeOps(mode), compute_capability)
        stack.enter_context(sharding_seen(recorder))
        accelerator = build_accelerator(traced, cpu=True)
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of CPU kernels that it misses, and nobody calls
        with disable_current_modes():  # bitsandbytes computes its quantisation tables here, which wants real numbers
            optimizer = build_optimizer(traced, moco)
        crops = _host_crops(traced)
        with recorder:
            if traced.memory.fully_shard:  # the host's, until its parts are the device's
                for tensor in moco.parameters():
                    recorder.ignore(tensor)
            else:
                _put_on_device(recorder, moco)
            # it is on the device already; moving would swap fake tensors, which torch refuses
            model, prepared = prepare(accelerator, moco, optimizer, on_device=True)
            _put_on_device(recorder, moco)  # parts take the place of what was divided
            if compute_capability is not None:
                for size in cublas_workspaces(compute_capability):
                    recorder.reserve(size, "cuBLAS workspace", "workspaces")
            views = _views(crops, traced, recorder)
            recorder.trace.step_start = len(recorder.trace.events)
            for _ in range(steps):
                with phases(recorder, moco, optimizer), counted_meetings(recorder.trace):
                    step(accelerator, model, prepared, views, traced, 0.99)
            _name_lasting(recorder, moco, optimizer)
        recorder.closed = True
    return recorder.trace


def _traceable(recipe: Recipe) -> Recipe:
    if recipe.memory.mixed_precision != "fp16":
        return recipe
    return recipe.model_copy(update={"memory": recipe.memory.model_copy(update={"mixed_precision": "bf16"})})


def _fake_on_cpu(moco: MoCo, mode: FakeTensorMode) -> None:
    """Fake tensors in place of meta ones. (Built on fake ones, a module refuses `.to(memory_format=…)`.)"""
    for module in moco.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = FakeTensor(mode, parameter.detach(), _CPU)
            setattr(module, name, torch.nn.Parameter(fake, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, FakeTensor(mode, buffer, _CPU))


def _put_on_device(recorder: Recorder, moco: MoCo) -> None:
    """The model is built on the host and moved: its tensors arrive one by one, without initialisation's temporaries."""
    for name, tensor in (*moco.named_parameters(), *moco.named_buffers()):
        recorder.add(local(tensor), name, "momentum_weights" if name.startswith("momentum_") else "weights")


def _host_crops(recipe: Recipe) -> CropBatch:
    """What the loader hands over, on the host: one view of one micro-batch, each tile with all there is to draw."""
    tiles, size = recipe.batch.micro_batch_size, recipe.encoder.image_size
    pixels = torch.empty(tiles, recipe.encoder.bands, size, size, dtype=crop_dtype(recipe))
    return CropBatch(pixels, [heaviest_photometry(recipe)] * tiles, [0] * tiles)


def _views(crops: CropBatch, recipe: Recipe, recorder: Recorder) -> tuple[View, View]:
    """The trainer's own views, which augment on the device when a micro-batch is asked for."""
    recorder.ignore(crops.pixels)
    batches = [crops] * recipe.batch.accumulation_steps
    view1, view2 = (TracedView(AugmentedView(batches, recipe, _CPU, on_gpu=True), recorder) for _ in range(2))
    return view1, view2


def _name_lasting(recorder: Recorder, moco: MoCo, optimizer: torch.optim.Optimizer) -> None:
    recorder.add(moco.gradient, "gradients", "gradients")
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor) and recorder.number_of(value) is not None:
                recorder.add(value, "optimizer state", "optimizer_state")
