"""Self-forced generation: the one denoising loop, for training, evaluation, command line and stream."""
