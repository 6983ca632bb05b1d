"""keepstep measured beside its peers and the machine's limits. See README.md beside this file."""
