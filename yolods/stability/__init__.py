"""The verdict on every step, based on its gradients and losses."""
