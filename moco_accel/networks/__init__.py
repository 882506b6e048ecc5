"""Encoders, the MoCo v3 model, its loss, collectives between ranks, and sharding (FSDP2)."""
