"""Initial weights from another run, transformers, timm or torchvision."""
