"""Cut scenes into tiles and store them in shards (`moco-data build`); write the demo tiles (`moco-data demo`)."""
