"""Methods that adapt a model while it is used."""
