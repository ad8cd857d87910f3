"""The contents of an h5ad file, reported in seconds: scale, genes, labels, knockdown, and the command that prepares it."""
