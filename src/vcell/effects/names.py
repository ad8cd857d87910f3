"""Names of the predictors that are made of a run's training cells, as `predictor=` and `baselines=` take them; without torch."""

BASELINES = (
    "copied_controls",
    "context_mean",
    "perturbation_mean",
    "additive",
    "sum_of_singles",
    "ridge",
    "nearest",
    "covariance",
    "wrong_target",
    "transfer",
)
