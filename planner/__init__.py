"""`moco-plan`: predict what fits a GPU and how long it takes, and write the recipe. Needs no GPU."""
