"""The task suites of this folder, made from a seed: one module a suite, each with a function `make_rows`."""
