"""Streams of tasks: data sets and generators, as pure functions of key and task."""
