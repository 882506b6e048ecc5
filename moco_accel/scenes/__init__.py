"""Scene files: which files make a scene, its bands, its grid, and windows read from it."""
