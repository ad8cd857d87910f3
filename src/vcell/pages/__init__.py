"""Pages of HTML that need no network: one look, their data inside, charts by Observable Plot (vendor/ has its file and licence)."""
