"""Benchmarks of a GPU: `case` (what is timed, and how) ← a module for each family ← `__main__`, which runs them."""
