"""Specifications of the GPUs that people train on.

`reported_mib` is the total memory that `torch.cuda.get_device_properties` reports under Linux: the smallest figure
found, apart from single outliers noted beside the row. It depends on the driver: newer drivers reserve 130 to 200 MiB
more (an RTX 3090 went from 24,268 to 24,123), and ECC takes a sixteenth of GDDR6. Windows and WSL report more memory,
of which less is usable. `source` names the origin of the figure:

- `owner/repository#number`: the out-of-memory error in that GitHub thread.
- LOG: a log of the device's properties in a public repository.
- OLD_LOG: such a log with an older or unnamed driver. A current driver may leave less; headroom covers that.
- empty: no figure was found. `reported_mib` is None and the figure is assumed, see ASSUMED_SHARE.

`tensor_tflops` is the dense 16-bit tensor throughput with fp32 accumulation that training uses, from NVIDIA's
architecture papers and data sheets (half of the figures "with sparsity"). For cards that no paper lists, it is CUDA
cores × boost clock from the product page × 4 FLOP (GeForce from Ampere on, whose rate is halved with fp32 accumulation)
or × 8 (GeForce Turing, workstation cards). This formula reproduces the printed figures. A laptop GPU has the lowest of
its boost clocks. A row that stands for several boards has the rates of the slowest.

Cards without tensor cores (GTX, Pascal and older) and cards without published rates are left out. Within a group, the
most common card of a size comes first.
"""

from __future__ import annotations

from typing import NamedTuple

ASSUMED_SHARE, ASSUMED_SHARE_ECC = 0.94, 0.915
"""Share of the marketed memory that is assumed where no figure was found.

It is just below the smallest share in this table (0.9445; with ECC 0.918). Out-of-memory errors of unnamed 8 GB cards
report 7.51 to 7.53 GiB, which is a share of 0.94 and agrees with what other 50-series cards reserve.
"""

OLDEST_CAPABILITY = 75
"""Oldest compute capability that PyTorch's CUDA 13 builds support (Turing).

Volta runs on the CUDA 12.6 builds only, which end with PyTorch 2.14: pytorch/pytorch#175253 (build matrix of 2.11),
pytorch/pytorch#190385 (build matrix of 2.15).
"""

LOG, OLD_LOG = "log", "log, older driver"


class Spec(NamedTuple):
    """Specification of one card.

    Attributes:
        name: Lower case without blanks; a mobile chip is called `laptop`, as in `rtx3060laptop`.
        product: The name that `torch.cuda.get_device_name` returns.
        compute_capability: 86 means 8.6.
        ecc: ECC is on by default and reduces the reported memory.
    """

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
    Spec("rtx3060laptop", "NVIDIA GeForce RTX 3060 Laptop GPU", 6, None, 86, 19.7, 336),
    Spec("rtx3050_6gb", "NVIDIA GeForce RTX 3050", 6, 5803, 86, 13.5, 168, LOG),
    Spec("rtx2060_6gb", "NVIDIA GeForce RTX 2060", 6, 5924, 75, 25.8, 336, "facebookresearch/meshrcnn#92"),
    # 8 GB. Outliers: one log reports 7,753 MiB for an RTX 3070, one error 7.59 GiB for an RTX 4060.
    # Threads that are cited in comments, here and below, report 130 to 200 MiB more with older drivers.
    Spec("rtx4060", "NVIDIA GeForce RTX 4060", 8, 7806, 89, 30.2, 272, LOG),
    Spec("rtx3070", "NVIDIA GeForce RTX 3070", 8, 7834, 86, 40.6, 448, LOG),  # akshitac8/OW-DETR#46
    Spec("rtx4060ti_8gb", "NVIDIA GeForce RTX 4060 Ti", 8, 7806, 89, 44.1, 288, LOG),
    Spec("rtx3060ti", "NVIDIA GeForce RTX 3060 Ti", 8, 7833, 86, 32.4, 448, LOG),
    Spec("rtx3070ti", "NVIDIA GeForce RTX 3070 Ti", 8, 7840, 86, 43.5, 608, LOG),
    Spec("rtx3050_8gb", "NVIDIA GeForce RTX 3050", 8, None, 86, 18.2, 224),
    Spec("rtx3060_8gb", "NVIDIA GeForce RTX 3060", 8, None, 86, 25.5, 240),
    Spec("rtx5060", "NVIDIA GeForce RTX 5060", 8, None, 120, 38.4, 448),
    Spec("rtx5060ti_8gb", "NVIDIA GeForce RTX 5060 Ti", 8, None, 120, 47.4, 448),
    Spec("rtx4060laptop", "NVIDIA GeForce RTX 4060 Laptop GPU", 8, 7806, 89, 18.1, 256, LOG),
    Spec("rtx4070laptop", "NVIDIA GeForce RTX 4070 Laptop GPU", 8, 7806, 89, 22.7, 256, LOG),
    Spec("rtx3070laptop", "NVIDIA GeForce RTX 3070 Laptop GPU", 8, None, 86, 26.4, 384),
    Spec("rtx2060super", "NVIDIA GeForce RTX 2060 SUPER", 8, 7974, 75, 28.7, 448, OLD_LOG),
    Spec("rtx2070", "NVIDIA GeForce RTX 2070", 8, 7949, 75, 29.9, 448, OLD_LOG),
    Spec("rtx2070super", "NVIDIA GeForce RTX 2070 SUPER", 8, None, 75, 36.2, 448),
    Spec("rtx2080", "NVIDIA GeForce RTX 2080", 8, None, 75, 40.3, 448),
    Spec("rtx2080super", "NVIDIA GeForce RTX 2080 SUPER", 8, 7982, 75, 44.6, 496, OLD_LOG),
    # 10 and 11 GB
    Spec("rtx3080_10gb", "NVIDIA GeForce RTX 3080", 10, 10009, 86, 59.5, 760, OLD_LOG),  # zai-org/CogVideo#34
    Spec("rtx2080ti", "NVIDIA GeForce RTX 2080 Ti", 11, 10818, 75, 53.8, 616, LOG),  # JDAI-CV/image-captioning#11
    # 12 GB
    Spec("rtx3060_12gb", "NVIDIA GeForce RTX 3060", 12, 11910, 86, 25.5, 360, LOG),  # TencentARC/PhotoMaker#47
    Spec("rtx4070", "NVIDIA GeForce RTX 4070", 12, 11994, 89, 58.3, 504, OLD_LOG),
    Spec("rtx4070super", "NVIDIA GeForce RTX 4070 SUPER", 12, 11999, 89, 71.0, 504, OLD_LOG),
    Spec("rtx4070ti", "NVIDIA GeForce RTX 4070 Ti", 12, 12006, 89, 80.2, 504, "OpenLMLab/LOMO#17"),
    Spec("rtx5070", "NVIDIA GeForce RTX 5070", 12, 11755, 120, 61.7, 672, LOG),
    Spec("rtx3080_12gb", "NVIDIA GeForce RTX 3080", 12, 12117, 86, 61.3, 912, OLD_LOG),
    Spec("rtx3080ti", "NVIDIA GeForce RTX 3080 Ti", 12, 11910, 86, 68.2, 912, LOG),  # WongKinYiu/yolov7#847
    Spec("rtx4080laptop", "NVIDIA GeForce RTX 4080 Laptop GPU", 12, None, 89, 40.1, 432),
    Spec("rtx2060_12gb", "NVIDIA GeForce RTX 2060", 12, 11833, 75, 28.7, 336, LOG),
    # 16 GB
    Spec("rtx4060ti_16gb", "NVIDIA GeForce RTX 4060 Ti", 16, 15944, 89, 44.1, 288, LOG),
    Spec("rtx5060ti_16gb", "NVIDIA GeForce RTX 5060 Ti", 16, 15825, 120, 47.4, 448, LOG),
    Spec("rtx4080", "NVIDIA GeForce RTX 4080", 16, 16049, 89, 97.5, 717, OLD_LOG),
    Spec("rtx4080super", "NVIDIA GeForce RTX 4080 SUPER", 16, 15944, 89, 104.4, 736, LOG),
    Spec("rtx4070tisuper", "NVIDIA GeForce RTX 4070 Ti SUPER", 16, 15934, 89, 88.2, 672, LOG),
    Spec("rtx5070ti", "NVIDIA GeForce RTX 5070 Ti", 16, 15808, 120, 87.9, 896, LOG),
    Spec("rtx5080", "NVIDIA GeForce RTX 5080", 16, 15840, 120, 112.6, 960, LOG),
    Spec("rtx4090laptop", "NVIDIA GeForce RTX 4090 Laptop GPU", 16, None, 89, 56.6, 576),
    # 24 and 32 GB
    Spec("rtx3090", "NVIDIA GeForce RTX 3090", 24, 24123, 86, 71.0, 936, LOG),  # GaoLii/DSP#10
    Spec("rtx4090", "NVIDIA GeForce RTX 4090", 24, 24081, 89, 165.2, 1008, LOG),  # ali-vilab/VGen#104
    Spec("rtx3090ti", "NVIDIA GeForce RTX 3090 Ti", 24, 24114, 86, 80.0, 1008, LOG),
    Spec("rtx5090", "NVIDIA GeForce RTX 5090", 32, 32109, 120, 209.5, 1792, LOG),
)
WORKSTATION = (
    Spec("a2000_6gb", "NVIDIA RTX A2000", 6, None, 86, 31.9, 288),
    Spec("a2000_12gb", "NVIDIA RTX A2000 12GB", 12, 12017, 86, 31.9, 288, OLD_LOG),
    Spec("a4000", "NVIDIA RTX A4000", 16, 15979, 86, 76.7, 448, "DengKaiCQ/VGGT-Long#6"),
    Spec("rtx4000sffada", "NVIDIA RTX 4000 SFF Ada Generation", 20, 20055, 89, 76.7, 280, LOG),
    Spec("rtx4000ada", "NVIDIA RTX 4000 Ada Generation", 20, None, 89, 106.9, 360, ecc=True),
    Spec("a4500", "NVIDIA RTX A4500", 20, None, 86, 94.6, 640),
    Spec("a5000", "NVIDIA RTX A5000", 24, 24114, 86, 111.1, 768, LOG),
    Spec("rtx4500ada", "NVIDIA RTX 4500 Ada Generation", 24, None, 89, 158.5, 432, ecc=True),
    Spec("quadrortx6000", "Quadro RTX 6000", 24, None, 75, 130.5, 672),
    Spec("rtx5000ada", "NVIDIA RTX 5000 Ada Generation", 32, None, 89, 261.1, 576, ecc=True),
    Spec("a6000", "NVIDIA RTX A6000", 48, 48676, 86, 154.8, 768, OLD_LOG),
    # 48,497 MiB without ECC
    Spec("rtx6000ada", "NVIDIA RTX 6000 Ada Generation", 48, 45491, 89, 364.2, 960, "DINGYANB/MTVCrafter#21", ecc=True),
    Spec("quadrortx8000", "Quadro RTX 8000", 48, 48594, 75, 130.5, 672, "Victarry/stable-dreambooth#8"),
    # figure of the Server Edition
    Spec("rtxpro6000", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 96, 97250, 120, 503.8, 1792, LOG, ecc=True),
)
DATA_CENTRE = (
    Spec("t4", "Tesla T4", 16, 15079, 75, 65.0, 320, LOG, ecc=True),
    Spec("v100_16gb", "Tesla V100-SXM2-16GB", 16, 16130, 70, 112.0, 900, LOG, ecc=True),
    Spec("a16", "NVIDIA A16", 16, None, 86, 17.9, 200, ecc=True),
    Spec("l4", "NVIDIA L4", 24, 22563, 89, 121.0, 300, LOG, ecc=True),
    Spec("a10", "NVIDIA A10", 24, 22587, 86, 125.0, 600, "log of an A10G", ecc=True),
    Spec("a10g", "NVIDIA A10G", 24, 22587, 86, 70.0, 600, LOG, ecc=True),
    Spec("a30", "NVIDIA A30", 24, 24164, 80, 165.0, 933, LOG, ecc=True),
    Spec("v100_32gb", "Tesla V100-SXM2-32GB", 32, 32494, 70, 112.0, 900, LOG, ecc=True),
    Spec("a100_40gb", "NVIDIA A100-SXM4-40GB", 40, 40326, 80, 312.0, 1555, LOG, ecc=True),
    Spec("a40", "NVIDIA A40", 48, 45416, 86, 149.7, 696, LOG, ecc=True),
    Spec("l40s", "NVIDIA L40S", 48, 45495, 89, 362.0, 864, LOG, ecc=True),
    Spec("l40", "NVIDIA L40", 48, None, 89, 181.0, 864, ecc=True),
    Spec("a100_80gb", "NVIDIA A100-SXM4-80GB", 80, 81038, 80, 312.0, 1935, LOG, ecc=True),
    Spec("h100_sxm", "NVIDIA H100 80GB HBM3", 80, 81082, 90, 989.0, 3350, LOG, ecc=True),
    Spec("h100_pcie", "NVIDIA H100 PCIe", 80, 81008, 90, 756.0, 2000, LOG, ecc=True),
    Spec("h100_nvl", "NVIDIA H100 NVL", 94, None, 90, 835.0, 3900, ecc=True),
    Spec("h200", "NVIDIA H200", 141, 143156, 90, 989.0, 4800, LOG, ecc=True),
    Spec("b200", "NVIDIA B200", 180, 182631, 100, 2250.0, 7700, LOG, ecc=True),
)
PRODUCT_ALIASES = {
    "NVIDIA GeForce RTX 3050 6GB": "rtx3050_6gb",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": "rtxpro6000",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtxpro6000",
    "Tesla V100-PCIE-16GB": "v100_16gb",
    "Tesla V100-PCIE-32GB": "v100_32gb",
    "NVIDIA A100-PCIE-40GB": "a100_40gb",
    "NVIDIA A100 80GB PCIe": "a100_80gb",
}
"""Other boards with the figures of a row: equal within a per cent, or faster."""

# by size; among equal sizes GeForce first, then the order above, which is how common the cards are
SPECS = {spec.name: spec for spec in sorted((*GEFORCE, *WORKSTATION, *DATA_CENTRE), key=lambda spec: spec.marketed_gib)}
