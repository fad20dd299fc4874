"""A first step past one process: a tiny model with adapters, sharded over ranks on this machine (`make sharded`)."""
