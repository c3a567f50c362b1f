"""Lowering: a scenario's step becomes operators (what to compute) and a dataflow (what is alive when)."""
