"""The commands of `wroformer`: words, options and exit statuses."""
