"""yolods: train YOLOv5 detectors on DeepSpeed and get back an ordinary best.pt."""

__version__ = "0.1.0"
