"""yolods: trains YOLOv5 detectors on DeepSpeed and returns an ordinary best.pt."""

__version__ = "0.1.0"
