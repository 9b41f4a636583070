"""All that knows DeepSpeed's optimizers: master weights, shards, gradients, loss scale."""
