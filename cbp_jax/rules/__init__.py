"""Rules that choose which hidden units to reset, one file each."""
