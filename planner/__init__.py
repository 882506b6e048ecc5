"""`moco-plan`: what fits a card, why, how long it takes; writes the recipe. Needs no GPU."""
