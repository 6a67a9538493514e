"""Measures the server: beside others, at the bound of the machine, under too much load, and when it is killed."""
