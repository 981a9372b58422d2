"""What a run would take of devices. Compiles, never runs."""
