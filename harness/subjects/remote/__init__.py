"""A subject in an environment of its own: a worker process there, and its stand-ins here."""
