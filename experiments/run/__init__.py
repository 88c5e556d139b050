"""What carries out a run: command line, lanes, devices, checkpoints, run folder."""
