"""What a step costs between nodes."""
