"""A run's encoder for transformers, torchvision, timm, torchgeo or ONNX. The command is `moco-export`."""
