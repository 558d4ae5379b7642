"""Methods that learn from a few labels and many unlabelled images."""
