"""Training: the stages, and the loop that serves them all."""
