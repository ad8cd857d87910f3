"""Proteins to vectors of genes."""
