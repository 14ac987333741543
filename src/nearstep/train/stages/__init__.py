"""Stages of a run: codec, teacher with its text encoder, causal network. Distillation is train/distill/."""
