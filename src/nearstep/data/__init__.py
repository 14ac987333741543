"""Data: the procedural captioned world, and latents on disk."""
