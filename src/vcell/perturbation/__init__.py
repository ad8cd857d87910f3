"""What stands for a perturbation: its vector in a table."""
