"""Resets of hidden units, whoever chooses them: the one engine of all rules."""
