"""From a model's name or yaml to ultralytics' DetectionModel, with every fault of the yaml."""
