"""Programs that run the continual-learning experiments."""
