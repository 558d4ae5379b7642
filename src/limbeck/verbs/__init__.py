"""One verb each: what the command line and Python do."""
