"""Tests of the oracles: what is registered, what is replayed, where references disagree."""
