"""Classification of millions of files on a Ray cluster."""
