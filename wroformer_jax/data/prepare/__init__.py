"""From stems on disk to a prepared set of songs."""
