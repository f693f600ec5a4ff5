"""Training: the loop, averaged weights, checkpoints."""
