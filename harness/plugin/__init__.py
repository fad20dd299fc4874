"""pytest's side: options, one test per claim, claims gathered from workers and shards, reports and the exit code."""
