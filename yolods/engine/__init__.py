"""One optimizer step, whatever DeepSpeed layout carries it out."""
