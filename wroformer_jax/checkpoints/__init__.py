"""Weights on disk, from the hub, and to and from PyTorch."""
