"""The catalogue, the finder, the quotes and the cache, on files made for it and on the pinned ones."""
