"""Random crops of tiles and the photometric augmentation of views."""
