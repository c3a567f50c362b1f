"""Measure, fit, store and carry over calibrations. Torch and triton are imported only where they run."""
