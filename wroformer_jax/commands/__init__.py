"""The subcommands of `wroformer`, a module each: `add_to` adds it to the parser, `run` does it."""
