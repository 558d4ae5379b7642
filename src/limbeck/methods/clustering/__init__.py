"""Clustering: no labels at all."""
