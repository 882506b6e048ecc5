"""From the command line to an answer: cards, search, report, recipe and launch commands."""
