"""From recordings to stems."""
