"""Helpers and programs of the tests."""
