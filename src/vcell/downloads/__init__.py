"""Public data sets: where they lie, under which licence, and how they are fetched whole."""
