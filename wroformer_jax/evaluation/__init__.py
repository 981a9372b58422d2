"""Scores of stems."""
