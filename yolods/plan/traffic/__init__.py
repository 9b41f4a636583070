"""What ranks send to each other in one step, and how long a link takes for it."""
