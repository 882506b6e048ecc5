"""From a question to an answer: search, reasons, report, JSON, launch lines, the recipe."""
