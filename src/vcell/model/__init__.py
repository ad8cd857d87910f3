"""Predictors of perturbed cells: the transition model and the baselines."""
