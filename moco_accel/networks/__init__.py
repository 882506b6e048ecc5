"""Encoders, the MoCo model, the loss, what crosses processes, and sharding (FSDP2)."""
