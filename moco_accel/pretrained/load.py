"""Load `encoder.weights` into both sides: another run's, or named as in transformers, timm or torchvision."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from torch import Tensor, nn

from moco_accel.checkpoints.run_folder import load_encoder
from moco_accel.checkpoints.tensor_files import read_layout, read_tensors
from moco_accel.common.errors import UserError, short_repr
from moco_accel.networks.moco import MoCo
from moco_accel.pretrained.architecture import Architecture, Shapes, check_architecture, infer_architecture
from moco_accel.pretrained.files import locate_weights, read_head_count
from moco_accel.pretrained.tensor_names import Library, bare_names, detect_library, from_library, tensor_location
from moco_accel.recipe.schema import Recipe

_HEADS = re.compile(
    r"(head|heads|head_dist|fc|fc_norm|classifier|pooler|pre_logits|projector|predictor|decoder|mask_token)(\.|$)|momentum_"
)
_POSITIONS = "vit.embeddings.position_embeddings"
_BATCH_COUNTER = "num_batches_tracked"  # does not affect features
Tensors = dict[str, Tensor]


def load_weights(moco: MoCo, recipe: Recipe, log: Callable[[str], None]) -> None:
    """Load `encoder.weights`, unless it is null, into encoder and momentum encoder, and log what was loaded.

    Raises:
        UserError: If the weights cannot be read or do not fit.
    """
    if recipe.encoder.weights is None:
        return
    tensors, notes = read_weights(recipe.encoder.weights, moco.encoder)
    with torch.no_grad():
        for encoder in (moco.encoder, moco.momentum_encoder):
            for name, target in encoder.state_dict().items():
                if name in tensors:
                    target.copy_(tensors[name])  # in place, which keeps memory formats and references
    for note in notes:
        log(escape(note))


def read_weights(source: str, encoder: nn.Module) -> tuple[Tensors, list[str]]:
    """Read the weights of `source` for `encoder`.

    Returns:
        Tensors by the encoder's names, and lines that describe them.

    Raises:
        UserError: If `source` does not exist, holds no weights, or those of another encoder.
    """
    path = locate_weights(source)
    if path.is_dir():
        theirs = load_encoder(path)[1]
        check_architecture(source, _architecture_of(theirs, "transformers"), _architecture_of(encoder, "transformers"))
        tensors = theirs.state_dict()
        notes = [f"both sides start with {len(tensors)} tensors of {path}"]
    else:
        try:
            tensors, notes = _read_file(source, path, encoder)
        except UserError:
            raise
        except (ValueError, KeyError) as error:
            why = f"lacks {error.args[0]}" if isinstance(error, KeyError) else f"holds no encoder's weights: {error}"
            raise UserError(
                f"encoder.weights={short_repr(source)} {why}; a run's folder or a moco-export works"
            ) from None
    own = encoder.state_dict().get(_POSITIONS)  # sin-cos before anything is loaded
    if own is not None and not torch.allclose(tensors[_POSITIONS].float(), own.float().cpu(), atol=1e-3):
        notes.append("position embeddings are the file's, learned and not sin-cos; they stay fixed")
    return tensors, [f"encoder.weights: {note}" for note in notes]


def _read_file(source: str, path: Path, encoder: nn.Module) -> tuple[Tensors, list[str]]:
    layout = read_layout(path)
    bare = bare_names(list(layout))
    detected = detect_library(set(bare.values()))
    if detected is None:
        some = ", ".join(sorted(layout)[:3])
        raise ValueError(f"its tensors ({short_repr(some)}, …) are not named as in transformers, timm or torchvision")
    kind, library = detected
    shapes = {name: layout[stored][1] for stored, name in bare.items()}
    heads = read_head_count(path) if kind == "ViT" else None
    found = infer_architecture(kind, library, shapes) | ({} if heads is None else {"heads": heads})
    wanted = _architecture_of(encoder, library)
    check_architecture(source, found, wanted)
    left_out = _check_tensors(shapes, _shapes_in(library, encoder))
    theirs = {bare[stored]: tensor for stored, tensor in read_tensors(path) if bare[stored] not in left_out}
    names = [name for name in encoder.state_dict() if tensor_location(library, name)[0] in theirs]
    tensors = from_library(theirs, library, names)
    notes = [f"both sides start with {len(theirs)} tensors of {path}, named as in {library}"]
    if left_out:
        notes.append(f"left out, not part of the encoder: {', '.join(sorted(left_out))}")
    if converted := sorted({str(tensor.dtype) for tensor in theirs.values()} - {"torch.float32", "torch.int64"}):
        notes.append(f"{', '.join(converted)} become torch.float32")
    if kind == "ViT" and heads is None:
        notes.append(f"the file does not name the number of attention heads; assumed: {wanted['heads']}")
    return tensors, notes


def _check_tensors(shapes: Shapes, wanted: Shapes) -> set[str]:
    """Return the names of the heads' tensors; raise KeyError or ValueError if the encoder's do not fit."""
    for name, shape in wanted.items():
        if name not in shapes and not name.endswith(_BATCH_COUNTER):
            raise KeyError(name)
        if shapes.get(name, shape) != shape:
            raise ValueError(f"{name} is {list(shapes[name])} in place of {list(shape)}")
    left_out = set(shapes) - set(wanted)
    if unknown := sorted(name for name in left_out if not _HEADS.match(name)):
        raise ValueError(f"this encoder has no tensor {short_repr(unknown[0])} ({len(unknown)} such in all)")
    return left_out


def _architecture_of(encoder: nn.Module, library: Library) -> Architecture:
    shapes, vit = _shapes_in(library, encoder), getattr(encoder, "vit", None)
    if vit is None:
        return infer_architecture("ResNet", library, shapes)
    config: Any = vit.config
    return infer_architecture("ViT", library, shapes) | {"heads": config.num_attention_heads}


def _shapes_in(library: Library, encoder: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the encoder's tensors as `library` stores them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in encoder.state_dict().items():
        theirs, third = tensor_location(library, name)
        shapes[theirs] = tuple(tensor.shape) if third is None else (3 * tensor.shape[0], *tensor.shape[1:])
    return shapes
