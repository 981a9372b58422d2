"""Songs that are synthesised, for first runs and tests."""
