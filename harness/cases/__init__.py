"""What a check is tried on: layers' cases, tiny models, recorded cases, and how many of them a profile gives."""
