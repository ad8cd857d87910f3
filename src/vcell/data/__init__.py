"""From h5ad files to cell sets: ingest, store, splits, sampler, gather."""
