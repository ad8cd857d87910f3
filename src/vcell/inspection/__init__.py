"""What an h5ad file holds, said in seconds: scale, genes, labels, knock-down, and the line that prepares it."""
