"""--format torchgeo: torch hub and torchgeo's trainers load the export (the latter only if torchgeo is installed)."""

from __future__ import annotations

import hashlib
import pickletools
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.exported_runs import BANDS13, export_and_compare, trained_encoder
from torchvision.models._api import WeightsEnum

from moco_accel.export.to_torchgeo import import_weights_module
from moco_accel.export.trained_encoder import TrainedEncoder, random_pixels
from moco_accel.views.crops import to_pixels

pytestmark = pytest.mark.usefixtures("few_blocks")


@pytest.fixture
def _clean_imports() -> Iterator[None]:
    path = list(sys.path)
    yield
    sys.path[:] = path
    sys.modules.pop("weights", None)


def run_and_export(folder: Path, name: str, bands: int = 13) -> tuple[TrainedEncoder, Path]:
    trained = trained_encoder(folder / "run", name, bands)
    assert export_and_compare(trained, folder / "out", "torchgeo") <= 1e-5
    return trained, folder / "out"


def test_the_file_name_holds_its_hash_and_the_file_only_tensors(tmp_path: Path) -> None:
    _, out = run_and_export(tmp_path, "vit_tiny_patch8")
    (path,) = out.glob("*.pth")
    assert re.fullmatch(r"moco_accel_vit_tiny_patch8_32px_13bands-[0-9a-f]{8}\.pth", path.name)
    assert path.stem[-8:] == hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    with zipfile.ZipFile(path) as archive:
        (inside,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        found = {argument for code, argument, _ in pickletools.genops(archive.read(inside)) if code.name == "GLOBAL"}
    assert found <= {
        "torch._utils _rebuild_tensor_v2",
        "collections OrderedDict",
        "torch FloatStorage",
        "torch LongStorage",
    }


def test_the_weights_enum_loads_verifies_and_normalises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, out = run_and_export(tmp_path, "vit_tiny_patch8")
    weights = import_weights_module(out).MocoAccel_Weights.PRETRAINED
    assert isinstance(weights, WeightsEnum)
    assert (weights.meta["in_chans"], weights.meta["bands"]) == (13, BANDS13)
    # as torch hub downloads: by address, with a check of the hash
    fetched = weights.get_state_dict(model_dir=str(tmp_path / "hub"), check_hash=True, progress=False)
    in_place = weights.get_state_dict()
    assert fetched.keys() == in_place.keys()
    assert all(torch.equal(fetched[name], in_place[name]) for name in fetched)
    model = timm.create_model(weights.meta["model"], num_classes=0, in_chans=13).eval()
    model.load_state_dict(in_place)
    pixels = random_pixels(trained)
    with torch.no_grad():
        assert (model(pixels) - trained.encoder(pixels)).abs().max() <= 1e-5  # measured: 0

    tile = torch.randint(0, 12_000, (13, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.int16)
    tile[4, 3, 5] = 0  # one band without data: the pixel has no data
    mean, std = (torch.tensor(values)[:, None, None] for values in trained.recipe.normalisation)
    ours = (to_pixels(tile, trained.recipe) - mean) / std
    theirs = weights.transforms({"image": tile.float(), "label": 3})
    assert theirs["label"] == 3
    assert (theirs["image"] - ours).abs().max() <= 1e-5  # measured: 0
    assert torch.equal(theirs["image"][:, 3, 5], torch.zeros(13))
    unknown = tile.float()
    unknown[2, 7, 8] = torch.nan  # as float tiles mark no data
    assert torch.equal(weights.transforms(unknown)[:, 7, 8], torch.zeros(13))


@pytest.mark.usefixtures("_clean_imports")
@pytest.mark.parametrize(("name", "bands"), [("vit_small_patch16", 13), ("resnet18", 3)])
@pytest.mark.filterwarnings("default")  # torchgeo warns
def test_torchgeos_trainer_loads_the_weights(name: str, bands: int, tmp_path: Path) -> None:
    pytest.importorskip("torchgeo.trainers", exc_type=ImportError)
    trained, out = run_and_export(tmp_path, name, bands)
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1].replace("OUT", str(out)), names)
    model, pixels = names["task"].model.eval(), random_pixels(trained)
    with torch.no_grad():
        theirs = model.forward_head(model.forward_features(pixels), pre_logits=True)
        ours = trained.encoder(pixels)
    assert (theirs - ours).abs().max() <= 1e-5 * max(1, ours.abs().max())
