"""Every step's verdict on its gradients."""
