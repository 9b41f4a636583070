"""The engine of a detector in stages, with its clock and its report."""
