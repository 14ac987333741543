"""What a run or a clip costs: time, FLOPs, frame rates, and memory before anything is loaded."""
