"""Staying alive together: how the ranks of a job agree."""
