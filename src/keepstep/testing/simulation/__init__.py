"""The commit protocol's own code, run by simulated ranks over simulated stores, seed by seed.

``python -m keepstep.testing.simulation --saves 100000`` explores; docs/simulation.md says what is
simulated and what is not.
"""
