"""Where a stage runs: in this process, or in processes that are started for it."""
