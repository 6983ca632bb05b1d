"""What is measured, one module each. They run in every rank of a launch."""
