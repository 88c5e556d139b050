"""Finds the units of any network by tracing it, and checks that they are right."""
