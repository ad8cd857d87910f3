"""What is known of runs: how each was started and ended, its log and metrics; runs listed and compared."""
