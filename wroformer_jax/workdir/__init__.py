"""All that a run keeps and shows. Never trains."""
