"""What the operating system gives a process: files, folders, standard streams, signals."""
