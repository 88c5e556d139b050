"""Builds learners from configs, and measures them."""
