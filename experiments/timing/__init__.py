"""Times training, and compares it with the limits of the machine."""
