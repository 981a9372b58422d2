"""Settings of models and of training runs: frozen, checked once, plain Python."""
