"""Prediction: a checkpoint or a table, a request and control cells to an h5ad."""
