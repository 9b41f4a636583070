"""`yolods doctor`: whether a run would start on these hosts."""
