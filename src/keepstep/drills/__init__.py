"""Rehearsed failures: real jobs under torchrun, killed, damaged, frozen, and judged afterwards.

What happens (scenario, inject, run), what was left (history) and what to say of it (judge) are
separate, so that a verdict rests on what is on storage and nothing else.
"""
