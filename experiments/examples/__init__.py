"""Short programs that put continual backprop into training code of common kinds."""
