"""Photographs to a checkpoint: the networks, their data, recipes, training and evaluation."""
