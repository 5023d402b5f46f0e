"""Experiments: planned, trained, scored by the MTEB protocol, run in sweeps."""
