"""Methods whose product is a data set."""
