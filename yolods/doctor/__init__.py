"""`yolods doctor`: finds what would keep a run from starting, on this machine or on every host."""
