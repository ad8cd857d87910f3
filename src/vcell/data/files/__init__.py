"""The contents of files: h5ad and zarr, matrices, scales, gene names, labels, lists; read and written in one place each."""
