"""Export the encoder of a run to transformers, torchvision, timm, torchgeo or ONNX (`moco-export`)."""
