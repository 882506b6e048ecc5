"""Scenes to shards of tiles: `moco-data build`, and the tiles of the demo."""
