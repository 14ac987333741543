"""Wan2.1: its sizes, its names, and its clock of a thousand ticks."""

from __future__ import annotations

TICKS = 1000.0
"""Wan networks are fed 1000 t; everywhere else t lies in [0, 1]."""
