"""Effects of perturbations as measured in groups of cells, and predictors of cells that are made of them."""
