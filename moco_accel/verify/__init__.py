"""Check the objects that a recipe builds against MoCo v3. The command is `moco-verify`."""
