"""Finding the units of any network by tracing it, and proving that they are right."""
