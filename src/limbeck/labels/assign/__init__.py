"""Which cluster or class each sample goes to."""
