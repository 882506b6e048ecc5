"""Sources of tiles: parquet, Arrow and tar shards, image folders, the Hugging Face hub; and the shard writer."""
