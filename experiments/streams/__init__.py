"""What a learner sees: data sets and generators, pure functions of key and task."""
