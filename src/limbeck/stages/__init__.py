"""Stages: artefacts in, artefact out; the one training loop."""
