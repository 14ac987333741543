"""Clips of prompts into named files, whichever system makes them: one loop, and one system a file."""
