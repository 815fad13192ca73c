"""What every training loop has around its steps: config, resolve, journal, run directory and
evaluators."""
