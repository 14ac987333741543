"""Models on disk, the pipeline, and what it writes."""
