"""What a check is handed: subject and oracle on one case, rounding noise, the table of thresholds, and isolation from
what was asked before."""
