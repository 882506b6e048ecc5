"""Cards that people train on: what their makers sell, and how much of it CUDA reports as memory.

`reported_mib` is what torch.cuda.get_device_properties calls total memory under Linux: the smallest that programs
print, single outliers set aside where noted. It depends on the driver: newer ones keep 130 to 200 MiB more for
themselves (an RTX 3090 went from 24,268 to 24,123), and ECC takes a sixteenth of GDDR6 besides. Windows and WSL report
more and mean less. `source` says where the figure comes from:

- `owner/repository#number`: the out-of-memory error in that GitHub thread;
- LOG: a line that a program prints of the device's properties, in a log in some public repository;
- OLD_LOG: the same from an older driver or none that is named, so a current one may leave less; headroom covers that;
- nothing: no figure was found, and `reported_mib` is None. It is then assumed, see ASSUMED_SHARE.

`tensor_tflops` is dense 16-bit tensor throughput with fp32 accumulation, as training uses it. It is printed in NVIDIA's
architecture papers and data sheets (half of the figures "with sparsity"); for cards that no paper lists it is CUDA
cores × boost clock from the product page × 4 FLOP (GeForce from Ampere on, whose rate is halved with fp32
accumulation) or × 8 (GeForce Turing, workstation cards), which reproduces the printed figures. Of a laptop's range of
boost clocks it is the lowest. Where one row stands for several boards, the slower one's rates are taken.

Left out: cards without tensor cores (GTX, Pascal and older), and cards whose rates are not published.
Within a group, the commonest of a size comes first.
"""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

from moco_accel.common.errors import UserError

ASSUMED_SHARE, ASSUMED_SHARE_ECC = 0.94, 0.915
"""Where no figure was found: just below the smallest share in this table (0.9445; with ECC 0.918). 8 GB cards whose
errors say 7.51 to 7.53 GiB but not which card it is are at 0.94; they fit what 50-series cards keep back elsewhere."""

OLDEST_CAPABILITY = 75
"""PyTorch's CUDA 13 builds start at Turing; Volta runs on its CUDA 12.6 builds alone, which are to end with 2.14:
pytorch/pytorch#175253 (the matrix of 2.11), pytorch/pytorch#190385 (that of 2.15)."""

LOG, OLD_LOG = "log", "log, older driver"


class Sold(NamedTuple):
    """One card as sold. `product` is what torch.cuda.get_device_name says; `compute_capability` 86 means 8.6."""

    name: str
    product: str
    marketed_gib: int
    reported_mib: int | None
    compute_capability: int
    tensor_tflops: float
    bandwidth_gb_per_second: float
    source: str = ""
    ecc: bool = False


GEFORCE = (
    # 6 GB
    Sold("rtx3060laptop", "NVIDIA GeForce RTX 3060 Laptop GPU", 6, None, 86, 19.7, 336),
    Sold("rtx3050_6gb", "NVIDIA GeForce RTX 3050", 6, 5803, 86, 13.5, 168, LOG),
    Sold("rtx2060_6gb", "NVIDIA GeForce RTX 2060", 6, 5924, 75, 25.8, 336, "facebookresearch/meshrcnn#92"),
    # 8 GB. Beside the figures below, one log says 7,753 for an RTX 3070 and one error 7.59 GiB for an RTX 4060.
    # The threads behind some rows, here and below, are of older drivers: 130 to 200 MiB more.
    Sold("rtx4060", "NVIDIA GeForce RTX 4060", 8, 7806, 89, 30.2, 272, LOG),
    Sold("rtx3070", "NVIDIA GeForce RTX 3070", 8, 7834, 86, 40.6, 448, LOG),  # akshitac8/OW-DETR#46
    Sold("rtx4060ti_8gb", "NVIDIA GeForce RTX 4060 Ti", 8, 7806, 89, 44.1, 288, LOG),
    Sold("rtx3060ti", "NVIDIA GeForce RTX 3060 Ti", 8, 7833, 86, 32.4, 448, LOG),
    Sold("rtx3070ti", "NVIDIA GeForce RTX 3070 Ti", 8, 7840, 86, 43.5, 608, LOG),
    Sold("rtx3050_8gb", "NVIDIA GeForce RTX 3050", 8, None, 86, 18.2, 224),
    Sold("rtx3060_8gb", "NVIDIA GeForce RTX 3060", 8, None, 86, 25.5, 240),
    Sold("rtx5060", "NVIDIA GeForce RTX 5060", 8, None, 120, 38.4, 448),
    Sold("rtx5060ti_8gb", "NVIDIA GeForce RTX 5060 Ti", 8, None, 120, 47.4, 448),
    Sold("rtx4060laptop", "NVIDIA GeForce RTX 4060 Laptop GPU", 8, 7806, 89, 18.1, 256, LOG),
    Sold("rtx4070laptop", "NVIDIA GeForce RTX 4070 Laptop GPU", 8, 7806, 89, 22.7, 256, LOG),
    Sold("rtx3070laptop", "NVIDIA GeForce RTX 3070 Laptop GPU", 8, None, 86, 26.4, 384),
    Sold("rtx2060super", "NVIDIA GeForce RTX 2060 SUPER", 8, 7974, 75, 28.7, 448, OLD_LOG),
    Sold("rtx2070", "NVIDIA GeForce RTX 2070", 8, 7949, 75, 29.9, 448, OLD_LOG),
    Sold("rtx2070super", "NVIDIA GeForce RTX 2070 SUPER", 8, None, 75, 36.2, 448),
    Sold("rtx2080", "NVIDIA GeForce RTX 2080", 8, None, 75, 40.3, 448),
    Sold("rtx2080super", "NVIDIA GeForce RTX 2080 SUPER", 8, 7982, 75, 44.6, 496, OLD_LOG),
    # 10 and 11 GB
    Sold("rtx3080_10gb", "NVIDIA GeForce RTX 3080", 10, 10009, 86, 59.5, 760, OLD_LOG),  # zai-org/CogVideo#34
    Sold("rtx2080ti", "NVIDIA GeForce RTX 2080 Ti", 11, 10818, 75, 53.8, 616, LOG),  # JDAI-CV/image-captioning#11
    # 12 GB
    Sold("rtx3060_12gb", "NVIDIA GeForce RTX 3060", 12, 11910, 86, 25.5, 360, LOG),  # TencentARC/PhotoMaker#47
    Sold("rtx4070", "NVIDIA GeForce RTX 4070", 12, 11994, 89, 58.3, 504, OLD_LOG),
    Sold("rtx4070super", "NVIDIA GeForce RTX 4070 SUPER", 12, 11999, 89, 71.0, 504, OLD_LOG),
    Sold("rtx4070ti", "NVIDIA GeForce RTX 4070 Ti", 12, 12006, 89, 80.2, 504, "OpenLMLab/LOMO#17"),
    Sold("rtx5070", "NVIDIA GeForce RTX 5070", 12, 11755, 120, 61.7, 672, LOG),
    Sold("rtx3080_12gb", "NVIDIA GeForce RTX 3080", 12, 12117, 86, 61.3, 912, OLD_LOG),
    Sold("rtx3080ti", "NVIDIA GeForce RTX 3080 Ti", 12, 11910, 86, 68.2, 912, LOG),  # WongKinYiu/yolov7#847
    Sold("rtx4080laptop", "NVIDIA GeForce RTX 4080 Laptop GPU", 12, None, 89, 40.1, 432),
    Sold("rtx2060_12gb", "NVIDIA GeForce RTX 2060", 12, 11833, 75, 28.7, 336, LOG),
    # 16 GB
    Sold("rtx4060ti_16gb", "NVIDIA GeForce RTX 4060 Ti", 16, 15944, 89, 44.1, 288, LOG),
    Sold("rtx5060ti_16gb", "NVIDIA GeForce RTX 5060 Ti", 16, 15825, 120, 47.4, 448, LOG),
    Sold("rtx4080", "NVIDIA GeForce RTX 4080", 16, 16049, 89, 97.5, 717, OLD_LOG),
    Sold("rtx4080super", "NVIDIA GeForce RTX 4080 SUPER", 16, 15944, 89, 104.4, 736, LOG),
    Sold("rtx4070tisuper", "NVIDIA GeForce RTX 4070 Ti SUPER", 16, 15934, 89, 88.2, 672, LOG),
    Sold("rtx5070ti", "NVIDIA GeForce RTX 5070 Ti", 16, 15808, 120, 87.9, 896, LOG),
    Sold("rtx5080", "NVIDIA GeForce RTX 5080", 16, 15840, 120, 112.6, 960, LOG),
    Sold("rtx4090laptop", "NVIDIA GeForce RTX 4090 Laptop GPU", 16, None, 89, 56.6, 576),
    # 24 and 32 GB
    Sold("rtx3090", "NVIDIA GeForce RTX 3090", 24, 24123, 86, 71.0, 936, LOG),  # GaoLii/DSP#10
    Sold("rtx4090", "NVIDIA GeForce RTX 4090", 24, 24081, 89, 165.2, 1008, LOG),  # ali-vilab/VGen#104
    Sold("rtx3090ti", "NVIDIA GeForce RTX 3090 Ti", 24, 24114, 86, 80.0, 1008, LOG),
    Sold("rtx5090", "NVIDIA GeForce RTX 5090", 32, 32109, 120, 209.5, 1792, LOG),
)
WORKSTATION = (
    Sold("a2000_6gb", "NVIDIA RTX A2000", 6, None, 86, 31.9, 288),
    Sold("a2000_12gb", "NVIDIA RTX A2000 12GB", 12, 12017, 86, 31.9, 288, OLD_LOG),
    Sold("a4000", "NVIDIA RTX A4000", 16, 15979, 86, 76.7, 448, "DengKaiCQ/VGGT-Long#6"),
    Sold("rtx4000sffada", "NVIDIA RTX 4000 SFF Ada Generation", 20, 20055, 89, 76.7, 280, LOG),
    Sold("rtx4000ada", "NVIDIA RTX 4000 Ada Generation", 20, None, 89, 106.9, 360, ecc=True),
    Sold("a4500", "NVIDIA RTX A4500", 20, None, 86, 94.6, 640),
    Sold("a5000", "NVIDIA RTX A5000", 24, 24114, 86, 111.1, 768, LOG),
    Sold("rtx4500ada", "NVIDIA RTX 4500 Ada Generation", 24, None, 89, 158.5, 432, ecc=True),
    Sold("quadrortx6000", "Quadro RTX 6000", 24, None, 75, 130.5, 672),
    Sold("rtx5000ada", "NVIDIA RTX 5000 Ada Generation", 32, None, 89, 261.1, 576, ecc=True),
    Sold("a6000", "NVIDIA RTX A6000", 48, 48676, 86, 154.8, 768, OLD_LOG),
    # 48,497 without ECC
    Sold("rtx6000ada", "NVIDIA RTX 6000 Ada Generation", 48, 45491, 89, 364.2, 960, "DINGYANB/MTVCrafter#21", ecc=True),
    Sold("quadrortx8000", "Quadro RTX 8000", 48, 48594, 75, 130.5, 672, "Victarry/stable-dreambooth#8"),
    # the Server Edition's figure
    Sold("rtxpro6000", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 96, 97250, 120, 503.8, 1792, LOG, ecc=True),
)
DATA_CENTRE = (
    Sold("t4", "Tesla T4", 16, 15079, 75, 65.0, 320, LOG, ecc=True),
    Sold("v100_16gb", "Tesla V100-SXM2-16GB", 16, 16130, 70, 112.0, 900, LOG, ecc=True),
    Sold("a16", "NVIDIA A16", 16, None, 86, 17.9, 200, ecc=True),
    Sold("l4", "NVIDIA L4", 24, 22563, 89, 121.0, 300, LOG, ecc=True),
    Sold("a10", "NVIDIA A10", 24, 22587, 86, 125.0, 600, "log of an A10G", ecc=True),
    Sold("a10g", "NVIDIA A10G", 24, 22587, 86, 70.0, 600, LOG, ecc=True),
    Sold("a30", "NVIDIA A30", 24, 24164, 80, 165.0, 933, LOG, ecc=True),
    Sold("v100_32gb", "Tesla V100-SXM2-32GB", 32, 32494, 70, 112.0, 900, LOG, ecc=True),
    Sold("a100_40gb", "NVIDIA A100-SXM4-40GB", 40, 40326, 80, 312.0, 1555, LOG, ecc=True),
    Sold("a40", "NVIDIA A40", 48, 45416, 86, 149.7, 696, LOG, ecc=True),
    Sold("l40s", "NVIDIA L40S", 48, 45495, 89, 362.0, 864, LOG, ecc=True),
    Sold("l40", "NVIDIA L40", 48, None, 89, 181.0, 864, ecc=True),
    Sold("a100_80gb", "NVIDIA A100-SXM4-80GB", 80, 81038, 80, 312.0, 1935, LOG, ecc=True),
    Sold("h100_sxm", "NVIDIA H100 80GB HBM3", 80, 81082, 90, 989.0, 3350, LOG, ecc=True),
    Sold("h100_pcie", "NVIDIA H100 PCIe", 80, 81008, 90, 756.0, 2000, LOG, ecc=True),
    Sold("h100_nvl", "NVIDIA H100 NVL", 94, None, 90, 835.0, 3900, ecc=True),
    Sold("h200", "NVIDIA H200", 141, 143156, 90, 989.0, 4800, LOG, ecc=True),
    Sold("b200", "NVIDIA B200", 180, 182631, 100, 2250.0, 7700, LOG, ecc=True),
)
ALSO_SOLD_AS = {
    "NVIDIA GeForce RTX 3050 6GB": "rtx3050_6gb",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": "rtxpro6000",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtxpro6000",
    "Tesla V100-PCIE-16GB": "v100_16gb",
    "Tesla V100-PCIE-32GB": "v100_32gb",
    "NVIDIA A100-PCIE-40GB": "a100_40gb",
    "NVIDIA A100 80GB PCIe": "a100_80gb",
}
"""Other boards under the same row, whose figures are those of the row within a per cent or are faster."""

# by size; among equals GeForce first, then the order above, which is how common they are
SOLD = {sold.name: sold for sold in sorted((*GEFORCE, *WORKSTATION, *DATA_CENTRE), key=lambda sold: sold.marketed_gib)}
PRODUCTS = [*((sold.product, sold.name) for sold in SOLD.values()), *ALSO_SOLD_AS.items()]


def plain(text: str) -> str:
    """A name without case, punctuation and the words that every product name has."""
    letters = re.sub(r"[^a-z0-9]", "", text.lower())
    return re.sub("nvidia|geforce|tesla|generation|gpu", "", letters).replace("mobile", "laptop")


def _spellings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for called, name in [*((name, name) for name in SOLD), *PRODUCTS]:
        size = f"{SOLD[name].marketed_gib}gb"
        ways = {plain(called), plain(called).replace(size, ""), name.partition("_")[0]}
        ways |= {way.removesuffix("ada") for way in ways} | {way.removeprefix("quadro") for way in ways}
        ways |= {way.removeprefix("rtx") for way in ways}
        for way in ways | {way + size for way in ways}:
            found[way] = [*(other for other in found.get(way, []) if other != name), name]
    return found


_SPELLINGS = _spellings()


def names_called(called: str) -> list[str]:
    """The cards that people call so, with or without size, RTX and the maker's words. Raises UserError for none."""
    text = " ".join(called.split())
    names = _SPELLINGS.get(plain(called), [])
    if not names and re.fullmatch("gtx.*|[pkm][0-9]+", plain(called)):
        raise UserError(f"--gpu={text} has no tensor cores, and such cards are left out; --list-gpus names the rest")
    if not names:
        raise UserError(
            f"--gpu={text} is not known; nearest: {', '.join(_nearest(plain(called)))}; --list-gpus names all, "
            "--vram 8 works for any card"
        )
    return names


def _nearest(called: str) -> list[str]:
    """The three most alike; among equally alike ones, those with the nearest number."""

    def number(text: str) -> int:
        return int(re.sub("[^0-9]", "", text)[:6] or 0)

    def unlikeness(name: str) -> tuple[float, int]:
        ratio = difflib.SequenceMatcher(None, called, name, autojunk=False).ratio()
        return -ratio, abs(number(name) - number(called))

    return sorted(dict.fromkeys(name.partition("_")[0] for name in SOLD), key=unlikeness)[:3]


def parse_vram(text: str) -> list[float]:
    """`8`, `8 GB` or `8,12` as the GB that each card is sold with. Raises UserError."""
    sizes = []
    for part in text.split(","):
        size = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*(gi?b?)?\s*", part, re.IGNORECASE)
        if size is None or not 0 < float(size[1]) < 10_000:
            raise UserError(f"--vram={' '.join(text.split())} must be the GB a card is sold with; --vram 8 works")
        sizes.append(float(size[1]))
    return sizes


def smallest_share(vram_gib: float) -> float:
    """The smallest share of its memory that a card of the nearest size was seen to report, of those without ECC.

    7.62 of 8 GiB (RTX 4060), 11.48 of 12 (RTX 5070), 15.44 of 16 (RTX 5070 Ti), 23.52 of 24 (RTX 4090).
    """
    seen = [
        (abs(sold.marketed_gib - vram_gib), sold.reported_mib / (sold.marketed_gib * 1024))
        for sold in SOLD.values()
        if sold.reported_mib is not None and not sold.ecc
    ]
    return min(seen)[1]
