"""Write the header of a planned recipe, the launch commands of a run, and its Slurm job. Imports no torch."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path

from rich.markup import escape

from moco_accel.recipe.data_sections import Augment
from moco_accel.recipe.encoder_names import RESNET_NAMES
from moco_accel.recipe.hardware_sections import Hardware
from moco_accel.recipe.launch_command import FIRST_NODE, launch_command
from moco_accel.recipe.schema import Recipe

_PAPER_ENCODERS = ("vit_small_patch16", "vit_base_patch16", "vit_large_patch16", "resnet50")
_PAPER_BATCH = 4096
_ALL_SHOWN = 4  # nodes; for more, only the first two are shown
SAVING_SECONDS = 300  # before a job's time limit, to finish the step and save a checkpoint

_JOB = """\
#!/bin/bash
# {recipe} on {where}. Submit from the repository's folder, with its environment active:
#   sbatch {job}
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
# one process per device
#SBATCH --ntasks-per-node={per_node}
{gpus}# data.num_workers of the recipe, plus the trainer
#SBATCH --cpus-per-task={cpus}
# as long as your partition allows, and well above the seconds of --signal; an unfinished run is queued again
#SBATCH --time=24:00:00
# seconds before the time limit at which each process finishes its step, saves and exits
#SBATCH --signal=TERM@{saving_seconds}
# after a node failure too, resuming from the newest complete checkpoint
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

run={run}
logs=$run-logs
mkdir -p "$logs"

# rendezvous on the first node, at a port of this job
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT WORLD_SIZE={devices} LOCAL_WORLD_SIZE={per_node} OMP_NUM_THREADS=1{cpu}

# without a launcher, Slurm's signal reaches the trainers, and nothing stops them while they save
srun --cpus-per-task={cpus} --kill-on-bad-exit=1 --open-mode=append --output="$logs/%j-node%n.log" --label \\
    bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' trainer \\
    python moco_accel/train.py --recipe {recipe} --output-dir "$run" --resume
code=$?

# the run was stopped without an error and is saved: queue it again to resume
if [ "$code" -eq 0 ] && [ -e "$run/stopped" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def recipe_header(recipe: Recipe, command: str, evidence: str) -> str:
    """Return the comment lines for `save_recipe`."""
    devices, nodes, vram_gib = recipe.hardware.num_devices, recipe.hardware.num_nodes, recipe.hardware.vram_gib
    cards = f"{devices} GPU{'s' if devices > 1 else ''} of {vram_gib:g} GB" if vram_gib else recipe.hardware.gpu
    lines = [command]
    if nodes > 1:
        cards = f"{cards}, {devices // nodes} in each of {nodes} nodes"
        others, ranks = ("the other node", "1") if nodes == 2 else ("the others", f"1 to {nodes - 1}")
        first = f"Run this on the first node, whose address is {FIRST_NODE}"
        lines.append(f"{first}; on {others} with --machine_rank {ranks}.")
    lines.append(f"Hardware: {cards}. Planned by moco-plan: {evidence}.")
    differences = "; ".join(differences_from_paper(recipe)) or "nothing"
    lines += textwrap.wrap(f"Differs from the paper: {differences}.", 116, subsequent_indent="  ")
    return "\n".join(lines)


def differences_from_paper(recipe: Recipe) -> list[str]:
    """Return what differs from arXiv 2104.02057 for this kind of encoder, as phrases."""
    resnet = recipe.encoder.name in RESNET_NAMES
    moco, batch, optimizer = recipe.moco, recipe.batch, recipe.optimizer
    optimizers = ("LARS", "lars") if resnet else ("AdamW", "adamw")
    temperature = 1.0 if resnet else 0.2
    names = {"adamw": "AdamW", "adamw_8bit": "AdamW with 8-bit state", "lars": "LARS"}
    checks = {
        f"{recipe.encoder.name} is not among its encoders": recipe.encoder.name not in _PAPER_ENCODERS,
        f"{recipe.encoder.image_size} px (not 224)": recipe.encoder.image_size != 224,
        f"a batch of {batch.global_batch_size} (not {_PAPER_BATCH})": batch.global_batch_size != _PAPER_BATCH,
        "negatives of one micro-batch only": batch.contrast_over == "micro_batch",
        f"a queue of {moco.queue_size} keys": moco.queue_size > 0,
        f"{names.get(optimizer.name, optimizer.name)} (not {optimizers[0]})": optimizer.name != optimizers[1],
        f"T {moco.temperature:g} (not {temperature:g})": moco.temperature != temperature,
        "a constant momentum coefficient (not cosine to 1)": moco.momentum_schedule == "constant",
        "a trained patch projection": not resnet and not recipe.encoder.freeze_patch_projection,
        "BatchNorm on the predictor's output": resnet and moco.predictor_output_norm,
        f"the encoder's BatchNorm takes its statistics from {batch.micro_batch_size} tiles (not 512)": resnet,
        recipe.memory.mixed_precision: recipe.memory.mixed_precision != "no",
        "satellite augmentation (turns, vertical flip, sensor noise, weaker colour)": recipe.augment == Augment(),
    }
    return [difference for difference, holds in checks.items() if holds]


def launch_lines(hardware: Hardware, recipe_path: str) -> list[str]:
    """Return the launch command of each node; with many nodes, of the first two and what changes on the others."""
    nodes = hardware.num_nodes
    if nodes <= _ALL_SHOWN:
        return [launch_command(hardware, recipe_path, node) for node in range(nodes)]
    lines = [launch_command(hardware, recipe_path, node) for node in range(2)]
    rank = "--machine_rank" if "--machine_rank" in lines[0] else "--node_rank"
    return [*lines, f"… {rank} 2 to {nodes - 1} on the others"]


def slurm_job(recipe: Recipe, recipe_path: str, job: Path) -> str:
    """Return an sbatch script that starts or resumes a run, saves it before the time limit, and queues it again."""
    hardware = recipe.hardware
    per_node, stem = hardware.num_devices // hardware.num_nodes, Path(recipe_path).stem
    on_cpu = hardware.vram_gib is None
    return _JOB.format(
        recipe=shlex.quote(recipe_path),
        where=f"{hardware.num_nodes} node{'s' if hardware.num_nodes > 1 else ''} of {per_node}",
        job=shlex.quote(str(job)),
        name=re.sub(r"[^\w.-]+", "_", stem, flags=re.ASCII),
        nodes=hardware.num_nodes,
        per_node=per_node,
        devices=hardware.num_devices,
        gpus="" if on_cpu else f"#SBATCH --gpus-per-node={per_node}\n",
        cpus=recipe.data.num_workers + 1,
        saving_seconds=SAVING_SECONDS,
        run=shlex.quote(f"runs/{stem}"),
        cpu=" ACCELERATE_USE_CPU=true" if on_cpu else "",
    )


def write_slurm_job(job: Path | None, recipe: Recipe, recipe_path: str) -> list[str]:
    """Write the job to `job` and return the command that submits it; do nothing for None."""
    if job is None:
        return []
    job.write_text(slurm_job(recipe, recipe_path, job), encoding="utf-8")
    return [f"For Slurm: [bold green]sbatch {escape(shlex.quote(str(job)))}[/]"]
