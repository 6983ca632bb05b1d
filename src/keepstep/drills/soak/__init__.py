"""One long job under many faults: which, when and how is a function of the seed alone."""
