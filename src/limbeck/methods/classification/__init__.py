"""Methods for classification with labels."""
