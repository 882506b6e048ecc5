"""From a trace to bytes on a card: the caching allocator, scaling, the estimate and its evidence."""
