"""Measuring: a model or a folder of clips against a world; statistics, tables, figures, similarity, calibration."""
