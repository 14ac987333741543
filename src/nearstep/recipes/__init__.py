"""Complete runs as functions that return configs; ``nearstep train MODULE.FUNCTION`` runs one."""
