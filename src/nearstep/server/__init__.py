"""Streams to look at and to steer in a browser, and videos by HTTP: ``nearstep serve``."""
