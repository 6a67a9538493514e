"""Load tests whose figures can be believed: open and closed loops, sweeps, MLPerf LoadGen, Locust users, the report."""
