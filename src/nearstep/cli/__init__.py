"""The command line: thin sub-commands over what Python callers use."""
