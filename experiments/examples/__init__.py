"""Short programs that add continual backprop to common kinds of training code."""
