"""Methods for semantic segmentation."""
