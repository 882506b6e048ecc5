"""Tiles of any source at random, their bands and statistics, and the order in which a run reads them."""
