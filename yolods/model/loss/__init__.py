"""The detection loss and its assignment of boxes to anchors."""
