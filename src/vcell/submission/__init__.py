"""Submission: a prediction checked against the rules of a challenge, and packed."""
