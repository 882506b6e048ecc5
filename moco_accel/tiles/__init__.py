"""Tiles of any source in random order, their bands and statistics, and the order in which a run reads them."""
