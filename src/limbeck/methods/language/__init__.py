"""Methods for text: language models and sentence encoders."""
