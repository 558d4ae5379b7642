"""Methods for generators."""
