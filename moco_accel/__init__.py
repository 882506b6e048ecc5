"""moco-accel: MoCo v3 pretraining for satellite imagery, at the paper's batch size, on ordinary GPUs."""

__version__ = "0.1.0"
