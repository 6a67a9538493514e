"""Other servers of the same network, each set up as its documentation recommends.

They run in an environment of their own, .venv-bench, and import this project's decoder and engine."""
