"""Methods for weak labels: of bags, of proportions."""
