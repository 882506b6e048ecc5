"""Encoded images: headers checked before decoding, and decoding to tensors of the stored type."""
