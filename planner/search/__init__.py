"""Search for the best recipe that fits a card, and for changes that make one fit."""
