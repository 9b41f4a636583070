"""TensorBoard's names and charts: in which groups a run's curves are found."""
