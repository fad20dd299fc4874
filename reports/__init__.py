"""What is said about a run: claims become findings, findings verdicts, and those the review.

Knows nothing of torch, of the oracles or of pytest; imports `refs` for quotes and nothing above.
"""
