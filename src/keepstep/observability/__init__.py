"""What happened, when, at what cost."""
