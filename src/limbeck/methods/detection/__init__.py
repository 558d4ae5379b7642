"""Methods for object detection."""
