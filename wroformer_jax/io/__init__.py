"""Files, folders, buckets and audio. Knows no model."""
