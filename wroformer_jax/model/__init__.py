"""The network: pure functions of parameters and audio."""
