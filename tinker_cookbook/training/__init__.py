"""What all training loops share: config, defaults, journal, run directory and evaluators."""
