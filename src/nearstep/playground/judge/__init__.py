"""The judge of the world of things: finds what a clip shows by fitting and redrawing it; compares it with a caption."""
