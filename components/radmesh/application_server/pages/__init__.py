"""The pages: what a browser sees of a cluster."""
