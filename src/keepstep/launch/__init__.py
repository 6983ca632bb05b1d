"""Facts of the process: the only place that looks at the environment."""
