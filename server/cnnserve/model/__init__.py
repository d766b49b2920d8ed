"""One version of a model: its load, its self-test and its use. May import `runtime` and the packages below it."""
