"""Presents the results of runs: labeled data sets, statistics over seeds, plots."""
