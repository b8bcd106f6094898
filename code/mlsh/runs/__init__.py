"""A training run's life: run folder, checkpoint, log, metrics, tracking, films and plots."""
