"""The training loop and what it is made of. It uses keepstep's public API only, as any loop can."""
