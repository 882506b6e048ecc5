"""Weights that a run starts from: another run's, or those of transformers, timm and torchvision."""
