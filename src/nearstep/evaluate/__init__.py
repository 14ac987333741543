"""Measuring: an analytic judge of the playground's clips, Fréchet distance, statistics, reports."""
