"""Training: a configuration to data, model and trainer, and a run that can be resumed at any step."""
