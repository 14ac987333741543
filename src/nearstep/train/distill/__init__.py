"""The method of the paper: a step's plan and noise, the networks, the adversary, the updates, the stage."""
