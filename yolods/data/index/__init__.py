"""What is known about a data set's images, in files that are opened without being read."""
