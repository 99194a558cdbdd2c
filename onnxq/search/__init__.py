"""Which decision costs how much."""
