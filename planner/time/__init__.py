"""Predict a step's time: counted operations on a card, counted bytes between nodes."""
