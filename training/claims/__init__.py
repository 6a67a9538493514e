"""The 2012 paper's claims, shown again on a small machine."""
