"""The programs that run the continual-learning experiments."""
