"""encoder.weights: a run begins with weights of its own kind, or of transformers, timm or torchvision.

Tensors are known by their names, and all of the encoder must be there in its shape: what does not fit is refused.
"""

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
from moco_accel.common.errors import UserError, short
from moco_accel.networks.moco import MoCo
from moco_accel.pretrained.files import heads_said, locate
from moco_accel.pretrained.shapes import Facts, Shapes, check_facts, facts_of
from moco_accel.pretrained.tensor_names import Library, library_of, place_in, restored, without_prefix
from moco_accel.recipe.schema import Recipe

_NOT_OF_THE_ENCODER = re.compile(
    r"(head|heads|head_dist|fc|fc_norm|classifier|pooler|pre_logits|projector|predictor|decoder|mask_token)(\.|$)|momentum_"
)
_POSITIONS = "vit.embeddings.position_embeddings"
_COUNTER = "num_batches_tracked"  # says nothing of the features
Named = dict[str, Tensor]


def load_weights(moco: MoCo, recipe: Recipe, say: Callable[[str], None]) -> None:
    """Put `encoder.weights`, if any, into both sides' encoders and say what they are. Raises UserError."""
    if recipe.encoder.weights is None:
        return
    tensors, notes = read_weights(recipe.encoder.weights, moco.encoder)
    for encoder in (moco.encoder, moco.momentum_encoder):
        _copy_into(encoder, tensors)
    for note in notes:
        say(escape(note))


def read_weights(source: str, encoder: nn.Module) -> tuple[Named, list[str]]:
    """What `source` holds for `encoder`, by our names, and what is to be said of it.

    Raises UserError where it is absent, no weights, or another encoder's.
    """
    path = locate(source)
    if path.is_dir():
        return _of_a_run(source, path, encoder)
    try:
        return _of_a_file(source, path, encoder)
    except UserError:
        raise
    except (ValueError, KeyError) as error:
        why = f"lacks {error.args[0]}" if isinstance(error, KeyError) else f"is no encoder's weights: {error}"
        raise UserError(f"encoder.weights={short(source)} {why}; a run's folder or a moco-export works") from None


def _of_a_run(source: str, path: Path, encoder: nn.Module) -> tuple[Named, list[str]]:
    theirs = load_encoder(path)[1]
    check_facts(source, _facts_of_ours(theirs, "transformers"), _facts_of_ours(encoder, "transformers"))
    tensors = theirs.state_dict()
    notes = [f"encoder.weights: both sides begin with {len(tensors)} tensors of {path}"]
    return tensors, notes + _of_positions(tensors, encoder)


def _of_a_file(source: str, path: Path, encoder: nn.Module) -> tuple[Named, list[str]]:
    layout = read_layout(path)
    plain_of = without_prefix(list(layout))
    recognised = library_of(set(plain_of.values()))
    if recognised is None:
        some = ", ".join(sorted(layout)[:3])
        raise ValueError(f"its tensors ({short(some)}, …) have no names of transformers', timm's or torchvision's")
    kind, library = recognised
    shapes = {plain: layout[stored][1] for stored, plain in plain_of.items()}
    heads = heads_said(path) if kind == "ViT" else None
    found = facts_of(kind, library, shapes) | ({} if heads is None else {"heads": heads})
    check_facts(source, found, _facts_of_ours(encoder, library))
    left_out = _check_tensors(shapes, _shapes_in(library, encoder))
    theirs = {plain_of[stored]: tensor for stored, tensor in read_tensors(path) if plain_of[stored] not in left_out}
    names = [name for name in encoder.state_dict() if place_in(library, name)[0] in theirs]
    tensors = restored(theirs, library, names)
    return tensors, _notes(path, library, theirs, left_out, tensors, encoder, heads)


def _check_tensors(shapes: Shapes, wanted: Shapes) -> set[str]:
    """Names of no concern: heads. Raises KeyError for one that lacks, ValueError for what an encoder here has not."""
    for name, shape in wanted.items():
        if name not in shapes and not name.endswith(_COUNTER):
            raise KeyError(name)
        if shapes.get(name, shape) != shape:
            raise ValueError(f"{name} is {list(shapes[name])}, and {list(shape)} is wanted")
    left_out = set(shapes) - set(wanted)
    unknown = sorted(name for name in left_out if not _NOT_OF_THE_ENCODER.match(name))
    if unknown:
        raise ValueError(f"{short(unknown[0])} ({len(unknown)} such in all) has no place in this encoder")
    return left_out


def _notes(
    path: Path,
    library: Library,
    theirs: Named,
    left_out: set[str],
    tensors: Named,
    encoder: nn.Module,
    heads: int | None,
) -> list[str]:
    notes = [f"encoder.weights: both sides begin with {len(theirs)} tensors of {path}, named as in {library}"]
    if left_out:
        notes.append(f"encoder.weights: left out, being no part of the encoder: {', '.join(sorted(left_out))}")
    other = sorted({str(tensor.dtype) for tensor in theirs.values()} - {"torch.float32", "torch.int64"})
    if other:
        notes.append(f"encoder.weights: {', '.join(other)} become torch.float32")
    if _POSITIONS in tensors and heads is None:
        ours = _facts_of_ours(encoder, library)["heads"]
        notes.append(f"encoder.weights: the file does not say how many attention heads; taken to be {ours}")
    return notes + _of_positions(tensors, encoder)


def _of_positions(tensors: Named, encoder: nn.Module) -> list[str]:
    """`encoder` still has its own, which are sin-cos."""
    own = encoder.state_dict().get(_POSITIONS)
    if own is None or torch.allclose(tensors[_POSITIONS].float(), own.float().cpu(), atol=1e-3):
        return []
    return ["encoder.weights: position embeddings are the file's, learned and not sin-cos; they stay fixed"]


def _facts_of_ours(encoder: nn.Module, library: Library) -> Facts:
    shapes, vit = _shapes_in(library, encoder), getattr(encoder, "vit", None)
    if vit is None:
        return facts_of("ResNet", library, shapes)
    config: Any = vit.config
    return facts_of("ViT", library, shapes) | {"heads": config.num_attention_heads}


def _shapes_in(library: Library, encoder: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of our encoder's tensors as `library` would keep them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in encoder.state_dict().items():
        theirs, third = place_in(library, name)
        shapes[theirs] = tuple(tensor.shape) if third is None else (3 * tensor.shape[0], *tensor.shape[1:])
    return shapes


@torch.no_grad()
def _copy_into(encoder: nn.Module, tensors: Named) -> None:
    """In place: memory formats, and whoever refers to the parameters, stay as they are."""
    for name, target in encoder.state_dict().items():
        if name in tensors:
            target.copy_(tensors[name])
