"""The detector as a graph of nodes, which can be cut into stages."""
