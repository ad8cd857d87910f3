"""Simulated screens with known truth."""
