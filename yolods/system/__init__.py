"""What the operating system provides: files, folders, standard streams and signals."""
