"""What every room needs: files, provenance of figures, how a command ends. Standard library only."""
