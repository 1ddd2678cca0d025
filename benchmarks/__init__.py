"""ragopt against the raw drivers and against other packages, in one run."""
