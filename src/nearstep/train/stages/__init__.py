"""Stages of a run: codec, teacher with its text encoder, causal network, graft. Distillation is train/distill/."""
