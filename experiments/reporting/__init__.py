"""What people read of a run: labeled results, statistics over seeds, plots."""
