"""The authors' oracles: recordings against the equations and the live code, the loader, the refusals."""
