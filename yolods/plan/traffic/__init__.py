"""What the ranks of a layout send each other in one step, and how long a link takes for it."""
