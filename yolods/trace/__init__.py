"""What every rank did in a few steps: recorded, put on one clock, drawn and added up."""
