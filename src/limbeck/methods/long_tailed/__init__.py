"""Methods that learn from classes of very different sizes."""
