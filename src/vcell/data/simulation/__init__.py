"""Simulated screens with known truth."""

from vcell.data.simulation.screen import Screen
from vcell.data.simulation.write import simulate

__all__ = ["Screen", "simulate"]
