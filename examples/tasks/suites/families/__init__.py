"""The families of Python tasks, one module a topic; each has a tuple `FAMILIES`."""
