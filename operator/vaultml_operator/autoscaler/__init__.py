"""How many workers a pipeline needs: what was seen, what is decided, why."""
