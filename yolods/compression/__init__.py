"""Averages gradients over ranks with fewer bytes than the gradients have."""
