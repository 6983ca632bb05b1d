"""For users' test suites: stores in memory, and the suite that every store must pass."""
