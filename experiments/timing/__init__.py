"""How fast training is, and how far from what the machine can do."""
