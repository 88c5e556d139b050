"""What learns: from a config to a learner, and what is measured of it."""
