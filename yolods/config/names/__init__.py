"""What a name stands for where no path is given: a model, a data set, a DeepSpeed configuration."""
