"""Sources of tiles: parquet, Arrow and tar shards, image folders, the Hugging Face hub; and the shard writer.

Every kind implements `base.Store`; `open_source.open_store` picks the kind.
"""
