"""Print the plan: tables and sentences for people, JSON for programs."""
