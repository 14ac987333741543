"""Training: the loop and what serves every stage; the stages; the distillation as a folder of its own."""
