"""Published totals on VBench, each with the protocol it was made under: totals of two protocols do not compare."""

from __future__ import annotations

from typing import NamedTuple

PAPER = "the ASD paper's main table (arXiv 2511.01419), 832x480; it does not say which wording of the prompts"
RCM = "Causal-rCM's Table 4: all measured again by its authors, 832x480, official GPT-4o prompts"


class Published(NamedTuple):
    """A row of somebody's table, in points of a hundred."""

    system: str
    steps: str
    total: float
    quality: float
    semantic: float
    protocol: str


ROWS = (
    Published("Wan2.1-1.3B", "50", 84.26, 85.30, 80.09, PAPER),
    Published("SkyReels-V2", "30", 82.67, 84.70, 74.53, PAPER),
    Published("MAGI-1 4.5B", "64", 79.18, 82.04, 67.74, PAPER),
    Published("NOVA", "25", 80.12, 80.39, 79.05, PAPER),
    Published("LTX-Video", "20", 80.00, 82.30, 70.79, PAPER),
    Published("Pyramid Flow", "20", 81.72, 84.74, 69.62, PAPER),
    Published("CausVid", "4", 81.20, 84.05, 69.80, PAPER),
    Published("Self Forcing", "4", 84.31, 85.07, 81.28, PAPER),
    Published("ASD", "4", 84.38, 85.16, 81.25, PAPER),
    Published("Self Forcing, retrained", "2", 83.49, 84.20, 80.62, PAPER),
    Published("ASD", "2, first chunk enhanced", 84.32, 85.15, 81.02, PAPER),
    Published("Self Forcing, retrained", "1", 80.62, 81.19, 78.35, PAPER),
    Published("ASD", "1, first chunk enhanced", 83.89, 84.55, 81.24, PAPER),
    Published("Wan2.1-1.3B", "50", 82.78, 83.44, 80.13, RCM),
    Published("Self Forcing", "4", 83.76, 84.53, 80.68, RCM),
    Published("LongLive", "4", 83.62, 84.36, 80.69, RCM),
    Published("AnyFlow-FAR", "4", 84.31, 85.15, 80.94, RCM),
    Published("Causal-rCM", "4", 84.37, 85.02, 81.73, RCM),
    Published("Causal-rCM", "2", 84.30, 85.04, 81.36, RCM),
    Published("Causal-rCM, noisy context", "2", 84.24, 84.96, 81.36, RCM),
    Published("Causal-rCM", "1, first chunk 4", 84.01, 84.71, 81.22, RCM),
    Published("Causal-rCM, frame by frame", "1, first chunk 4", 84.63, 85.54, 81.01, RCM),
)
