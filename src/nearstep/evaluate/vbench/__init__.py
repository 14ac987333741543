"""VBench as its authors run it, and with intervals: prompts, names, scores of the official package, and tables."""
