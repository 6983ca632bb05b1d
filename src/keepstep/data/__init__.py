"""Which samples, in which order: pure functions of the seed and the number of samples consumed."""
