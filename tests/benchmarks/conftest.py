"""Benchmarks are run by hand, ``python tests/benchmarks/table.py``; some modules need environments of their own."""

collect_ignore_glob = ["*.py"]
