"""Where the truth comes from: the catalogue of references (repository or package, pin, sha256, licence,
symbols per aspect), the finder and the quotes, the cache that `python -m refs sync` fills, the recordings.
Imports nothing of the audit."""
