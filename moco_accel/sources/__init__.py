"""Sources of tiles: parquet, arrow and tar shards, image folders, the hub; and the writer of shards.

Every kind implements `base.Store`; `stores.open_store` decides which kind a source is.
"""
