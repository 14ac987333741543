"""The maths of time and noise: paths, times, plans, guidance, the ODE. Needs torch alone."""
