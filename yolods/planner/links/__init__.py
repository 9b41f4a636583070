"""`yolods plan --links`: what the links between hosts carry."""
