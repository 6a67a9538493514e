"""Other servers of the same network, each as its own documentation would have it. They run in an environment of
their own (`make .venv-bench`), with `imaging` and `alexnet_triton.serving.engine` of this project on their path."""
