"""Check that what a recipe builds is MoCo v3, for `moco-verify`."""
