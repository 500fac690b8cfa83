"""Models with edit heads: any family's own language model, and beside its vocabulary head what edits are read from."""
