"""Predictions on their way to disk."""
