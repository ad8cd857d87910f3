"""Scores: the official scorers and what is shown of them."""
